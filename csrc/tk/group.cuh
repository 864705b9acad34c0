// Who acts: a lane's place in its warp, and groups of warps that act together.
#pragma once

#include "ptx_data.cuh"

namespace tk {

// Indices that the compiler can see to be the same in all lanes of the warp.
TK_DEVICE int warp_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }
TK_DEVICE int warpgroup_index() { return warp_index() / 4; }
TK_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % 32); }

// `Warps` warps of a one-dimensional block that act together, of which the first group begins at warp First: the scope
// of load, store and whatever else many warps do. Its tile is its warps' tiles stacked by slabs of 16 rows
// (group_slab).
template <int Warps, int First = 0>
struct group {
  static_assert(Warps >= 1 && Warps <= 32, "a group has 1 to 32 warps");
  static constexpr int warps = Warps, threads = 32 * Warps;
  TK_DEVICE static int thread() { return static_cast<int>((threadIdx.x - 32 * First) % threads); }
  TK_DEVICE static int warp() { return static_cast<int>((threadIdx.x / 32 - First) % Warps); }
  // Row of the group's tile at which row `row` (a multiple of 16) of this warp's tile lies.
  TK_DEVICE static int row(int row) { return 16 * group_slab(Warps, warp(), row / 16); }
};
using warp = group<1>;
using warpgroup = group<4>;

}  // namespace tk
