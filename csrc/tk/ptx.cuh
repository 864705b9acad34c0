// Inline PTX of what warps, warpgroups, clusters and grids do; includes the rest: ptx_data.cuh (data movement and
// arithmetic), ptx_async.cuh (barriers, fences and copies); the products are in ptx_mma.cuh and ptx_wgmma.cuh. One wrapper
// per instruction, named after it; the headings are the PTX ISA's own (its section numbers move between versions).
// "memory" clobbers stand wherever the instruction orders memory.
#pragma once

#include "ptx_async.cuh"
#include "ptx_data.cuh"

namespace tk::ptx {

#define TK_PTX_MEMORY(...) asm volatile(__VA_ARGS__ : "memory")

// ---- Asynchronous warpgroup level matrix instructions: synchronisation -----------------------------------------
TK_DEVICE void wgmma_fence() { TK_PTX_MEMORY("wgmma.fence.sync.aligned;" ::); }
TK_DEVICE void wgmma_commit_group() { TK_PTX_MEMORY("wgmma.commit_group.sync.aligned;" ::); }
template <int Pending>
TK_DEVICE void wgmma_wait_group() {
  static_assert(Pending >= 0 && Pending <= 7, "wgmma.wait_group takes 0 to 7");
  TK_PTX_MEMORY("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending));
}

// No instruction: a use and a definition of the register, which the compiler keeps in order with what is volatile.
TK_DEVICE void hold(float& x) { TK_PTX_MEMORY("" : "+f"(x) :); }
TK_DEVICE void hold(u32& x) { TK_PTX_MEMORY("" : "+r"(x) :); }
TK_DEVICE void hold(int& x) { TK_PTX_MEMORY("" : "+r"(x) :); }

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
