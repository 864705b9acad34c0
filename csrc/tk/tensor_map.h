// The 128 opaque bytes of a tensor map, as kernel parameters hold them: const __grid_constant__ tk::tensor_map.
// Host code fills them through runtime::Machine::encode; kernels only pass their address on.
#pragma once

namespace tk {

struct alignas(64) tensor_map {
  unsigned long long opaque[16];
};
static_assert(sizeof(tensor_map) == 128, "a tensor map has 128 bytes");

}  // namespace tk
