// The tensormap proxy: copies read tensor maps through it, and a write of a map that lies in global memory reaches it in two
// steps (PTX ISA 9.7.13.4, 9.7.9.27): a release after the write, by fence.proxy.tensormap::generic.release or
// tensormap.cp_fenceproxy, and after that an acquire of the map's address, before the copy. The two may be by different threads;
// what orders them is what orders anything else.
#include <algorithm>

#include "exec.h"

namespace tkpy::emulator {

namespace {

constexpr u32 kWords = static_cast<u32>(tensor::kTensorMapBytes / 4);
static_assert(kWords == std::tuple_size_v<decltype(MapAcquire::shown)>);

bool is_parameter(const Exec& x, u64 address) { return address - x.launch->param_address < x.launch->param_bytes; }

bool same(const Access& a, const Access& b) { return a.time == b.time && a.component == b.component && a.lane == b.lane && a.site == b.site; }

}  // namespace

void exec_tensormap_acquire(Exec& x, const Op& op, u32 mask) {
  if (!x.checked || !x.cluster->global) return;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 address = op.f & 1 ? x.row<u64>(op.s[0])[lane] : x.row<u32>(op.s[0])[lane];
    if (is_parameter(x, address) || !global_range(x, address, tensor::kTensorMapBytes, false)) continue;
    const Accessor a = accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op));
    MapAcquire acquire{record_of(a, false, 15), {}};
    for (u32 i = 0; i < kWords; ++i) {
      const Access& write = x.cluster->global->cells.at(address + 4 * i).write;
      if (write.time && released_to_maps(a, write)) acquire.shown[i] = write;
    }
    auto& all = x.cluster->map_acquires[address];
    const auto mine = std::find_if(all.begin(), all.end(), [&](const MapAcquire& m) { return m.by.component == a.component && m.by.lane == lane; });
    if (mine == all.end()) all.push_back(acquire);
    else *mine = acquire;
  }
}

void check_map_acquired(Exec& x, const Op& op, u32 lane, u64 address) {
  if (!x.checked || !x.cluster->global || is_parameter(x, address)) return;
  const Accessor a = accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op));
  const auto acquires = x.cluster->map_acquires.find(address);
  for (u32 i = 0; i < kWords; ++i) {
    const Access& write = x.cluster->global->cells.at(address + 4 * i).write;
    if (!write.time) continue;
    const auto shows = [&](const MapAcquire& m) { return same(m.shown[i], write) && relate(a, m.by, true, true) == Relation::ordered; };
    if (acquires != x.cluster->map_acquires.end() && std::any_of(acquires->second.begin(), acquires->second.end(), shows)) continue;
    x.cluster->report_pair(Check::proxy_fence, a.site, *x.warp, lane, write.site, *x.cluster->warps[write.warp], write.lane, [] {
      return std::string(
          "a copy uses a tensor map that this kernel has written, and nothing has shown the write to the tensormap proxy; needed: after the "
          "write fence.proxy.tensormap::generic.release, or tensormap.cp_fenceproxy, and after that, before the copy, "
          "fence.proxy.tensormap::generic.acquire of the map's address");
    });
    return;
  }
}

}  // namespace tkpy::emulator
