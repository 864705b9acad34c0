// Inline PTX of everything asynchronous: mbarriers, tensor copies, wgmma synchronisation, warps, clusters and grids
// (the wgmma shapes are in ptx_wgmma.cuh, data movement and arithmetic in ptx_data.cuh). One wrapper per instruction,
// named after it; the headings are the PTX ISA's own (its section numbers move between versions). "memory" clobbers
// stand wherever the instruction orders memory.
#pragma once

#include "ptx_data.cuh"
#include "tensor_map.h"

namespace tk::ptx {

#define TK_PTX_MEMORY(...) asm volatile(__VA_ARGS__ : "memory")

// ---- Parallel synchronisation: mbarrier ------------------------------------------------------------------------
TK_DEVICE void mbarrier_init(u32 bar, u32 count) {
  TK_PTX_MEMORY("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
TK_DEVICE void mbarrier_inval(u32 bar) { TK_PTX_MEMORY("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar)); }
TK_DEVICE void mbarrier_arrive(u32 bar) {
  TK_PTX_MEMORY("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(bar));
}
// At a barrier of any CTA of the cluster; `bar` comes from mapa.
TK_DEVICE void mbarrier_arrive_cluster(u32 bar) {
  TK_PTX_MEMORY("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar));
}
TK_DEVICE void mbarrier_arrive_expect_tx(u32 bar, u32 bytes) {
  TK_PTX_MEMORY("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes));
}
TK_DEVICE void mbarrier_expect_tx(u32 bar, u32 bytes) {
  TK_PTX_MEMORY("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes));
}
// True when the phase of `parity` is over. May suspend the thread, for a bounded time only: always loop.
TK_DEVICE bool mbarrier_try_wait(u32 bar, u32 parity) {
  u32 done;
  TK_PTX_MEMORY(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity));
  return done != 0;
}
TK_DEVICE bool mbarrier_try_wait_cluster(u32 bar, u32 parity) {
  u32 done;
  TK_PTX_MEMORY(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity));
  return done != 0;
}
// Makes mbarrier_init visible to the cluster and to the async proxy (fence.mbarrier_init).
TK_DEVICE void fence_mbarrier_init() { TK_PTX_MEMORY("fence.mbarrier_init.release.cluster;" ::); }

// ---- Memory consistency model, proxies --------------------------------------------------------------------------
// Orders generic writes to shared memory before reads by the async proxy (TMA, wgmma).
TK_DEVICE void fence_proxy_async() { TK_PTX_MEMORY("fence.proxy.async.shared::cta;" ::); }

// ---- Data movement, tensor copies: cp.async.bulk.tensor; coordinates innermost first ---------------------------
// Their completion adds the box's bytes to the transaction count of `bar`, in every destination CTA.
#define TK_TENSOR_LOAD(DIM, COORDS, ...)                                                                              \
  TK_PTX_MEMORY("cp.async.bulk.tensor." DIM ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, " \
                COORDS "], [%2];" ::"r"(dst), "l"(map), "r"(bar), __VA_ARGS__)
#define TK_TENSOR_LOAD_MULTICAST(DIM, COORDS, ...)                                                                  \
  TK_PTX_MEMORY("cp.async.bulk.tensor." DIM                                                                         \
                ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, " COORDS   \
                "], [%2], %3;" ::"r"(dst), "l"(map), "r"(bar), "h"(ctas), __VA_ARGS__)
#define TK_TENSOR_STORE(DIM, COORDS, ...)                                                                       \
  TK_PTX_MEMORY("cp.async.bulk.tensor." DIM ".global.shared::cta.tile.bulk_group [%0, " COORDS "], [%1];" ::"l"(map), \
                "r"(src), __VA_ARGS__)
#define TK_TENSOR_ADD(DIM, COORDS, ...)                                                                      \
  TK_PTX_MEMORY("cp.reduce.async.bulk.tensor." DIM ".global.shared::cta.add.tile.bulk_group [%0, " COORDS "], [%1];" \
                ::"l"(map), "r"(src), __VA_ARGS__)

// `at` runs outermost first, as shapes are written; PTX wants the innermost first.
template <int Rank>
TK_DEVICE void tensor_load(u32 dst, const tensor_map* map, u32 bar, const int (&at)[Rank]) {
  static_assert(Rank >= 2 && Rank <= 5, "tensor maps have 2 to 5 dimensions here");
  if constexpr (Rank == 2) TK_TENSOR_LOAD("2d", "{%3, %4}", "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 3) TK_TENSOR_LOAD("3d", "{%3, %4, %5}", "r"(at[2]), "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 4)
    TK_TENSOR_LOAD("4d", "{%3, %4, %5, %6}", "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 5)
    TK_TENSOR_LOAD("5d", "{%3, %4, %5, %6, %7}", "r"(at[4]), "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0]));
}

template <int Rank>
TK_DEVICE void tensor_load_multicast(u32 dst, const tensor_map* map, u32 bar, unsigned short ctas,
                                     const int (&at)[Rank]) {
  static_assert(Rank >= 2 && Rank <= 4, "multicast loads have 2 to 4 dimensions here");
  if constexpr (Rank == 2) TK_TENSOR_LOAD_MULTICAST("2d", "{%4, %5}", "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 3) TK_TENSOR_LOAD_MULTICAST("3d", "{%4, %5, %6}", "r"(at[2]), "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 4)
    TK_TENSOR_LOAD_MULTICAST("4d", "{%4, %5, %6, %7}", "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0]));
}

template <int Rank>
TK_DEVICE void tensor_store(const tensor_map* map, u32 src, const int (&at)[Rank]) {
  static_assert(Rank >= 2 && Rank <= 5, "tensor maps have 2 to 5 dimensions here");
  if constexpr (Rank == 2) TK_TENSOR_STORE("2d", "{%2, %3}", "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 3) TK_TENSOR_STORE("3d", "{%2, %3, %4}", "r"(at[2]), "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 4)
    TK_TENSOR_STORE("4d", "{%2, %3, %4, %5}", "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 5)
    TK_TENSOR_STORE("5d", "{%2, %3, %4, %5, %6}", "r"(at[4]), "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0]));
}

template <int Rank>
TK_DEVICE void tensor_add(const tensor_map* map, u32 src, const int (&at)[Rank]) {
  static_assert(Rank >= 2 && Rank <= 4, "tensor reductions have 2 to 4 dimensions here");
  if constexpr (Rank == 2) TK_TENSOR_ADD("2d", "{%2, %3}", "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 3) TK_TENSOR_ADD("3d", "{%2, %3, %4}", "r"(at[2]), "r"(at[1]), "r"(at[0]));
  if constexpr (Rank == 4) TK_TENSOR_ADD("4d", "{%2, %3, %4, %5}", "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0]));
}

#undef TK_TENSOR_LOAD
#undef TK_TENSOR_LOAD_MULTICAST
#undef TK_TENSOR_STORE
#undef TK_TENSOR_ADD

TK_DEVICE void prefetch_tensormap(const tensor_map* map) {
  TK_PTX_MEMORY("prefetch.tensormap [%0];" ::"l"(map));
}
TK_DEVICE void bulk_commit_group() { TK_PTX_MEMORY("cp.async.bulk.commit_group;" ::); }
template <int Pending>
TK_DEVICE void bulk_wait_group() {  // the writes of older groups are done
  TK_PTX_MEMORY("cp.async.bulk.wait_group %0;" ::"n"(Pending));
}
template <int Pending>
TK_DEVICE void bulk_wait_group_read() {  // their sources have been read and may be reused
  TK_PTX_MEMORY("cp.async.bulk.wait_group.read %0;" ::"n"(Pending));
}

// ---- Asynchronous warpgroup level matrix instructions: synchronisation -----------------------------------------
TK_DEVICE void wgmma_fence() { TK_PTX_MEMORY("wgmma.fence.sync.aligned;" ::); }
TK_DEVICE void wgmma_commit_group() { TK_PTX_MEMORY("wgmma.commit_group.sync.aligned;" ::); }
template <int Pending>
TK_DEVICE void wgmma_wait_group() {
  static_assert(Pending >= 0 && Pending <= 7, "wgmma.wait_group takes 0 to 7");
  TK_PTX_MEMORY("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending));
}

// ---- Warps, warpgroups, clusters, grids ------------------------------------------------------------------------
template <int Registers>
TK_DEVICE void setmaxnreg_inc() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "setmaxnreg takes 24..256 in steps of 8");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
TK_DEVICE void setmaxnreg_dec() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "setmaxnreg takes 24..256 in steps of 8");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
TK_DEVICE bool elect() {  // one lane of a whole warp
  u32 chosen;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(chosen));
  return chosen != 0;
}
TK_DEVICE void bar_sync(int id, int threads) {  // named barriers, 1..15; 0 is __syncthreads
  TK_PTX_MEMORY("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads));
}
TK_DEVICE void bar_arrive(int id, int threads) {
  TK_PTX_MEMORY("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads));
}
TK_DEVICE void cluster_arrive() { TK_PTX_MEMORY("barrier.cluster.arrive.release.aligned;" ::); }
TK_DEVICE void cluster_wait() { TK_PTX_MEMORY("barrier.cluster.wait.acquire.aligned;" ::); }
TK_DEVICE u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
TK_DEVICE u32 mapa(u32 address, u32 rank) {  // the same variable in another CTA of the cluster
  u32 mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
TK_DEVICE void griddepcontrol_wait() { TK_PTX_MEMORY("griddepcontrol.wait;" ::); }
TK_DEVICE void griddepcontrol_launch_dependents() { TK_PTX_MEMORY("griddepcontrol.launch_dependents;" ::); }

#undef TK_PTX_MEMORY

}  // namespace tk::ptx
