// Arrivals at barriers of other CTAs that release nothing to them. Not part of tk.cuh: kernels that use it include it.
#pragma once

#include "ptx.cuh"

namespace tk::ptx {

// ---- mbarrier: arrive, of who has only read ----------------------------------------------------------------------
// As mbarrier_arrive_cluster, of a slot that TMA fills next: the release is to this CTA alone. To the cluster ptxas makes it a
// fence of the whole GPU (MEMBAR.ALL.GPU) before each arrival; the CTA at the other end has no write of ours to see.
TK_DEVICE void mbarrier_arrive_remote(u32 bar) {  // in any CTA of the cluster; the address comes from mapa
  asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

}  // namespace tk::ptx
