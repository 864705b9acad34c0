// Special registers (PTX ISA 10): name to number.
#pragma once

#include "common.h"

namespace tkpy::emulator {

enum class Special : u8 {
  tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, nctaid_z,
  clusterid_x, clusterid_y, clusterid_z, nclusterid_x, nclusterid_y, nclusterid_z,
  cluster_ctaid_x, cluster_ctaid_y, cluster_ctaid_z, cluster_nctaid_x, cluster_nctaid_y, cluster_nctaid_z,
  cluster_ctarank, cluster_nctarank, is_explicit_cluster, laneid, warpid, nwarpid, smid, nsmid, gridid,
  lanemask_eq, lanemask_le, lanemask_lt, lanemask_ge, lanemask_gt, clock, clock_hi, clock64,
  globaltimer, globaltimer_lo, globaltimer_hi, dynamic_smem_size, total_smem_size, aggr_smem_size,
  reserved_smem_begin, reserved_smem_end, current_graph_exec, performance_monitor, performance_monitor64,
  envreg1, envreg2, envreg, warp_size, count
};

// kNone when `name` (with its % and suffix) is no special register.
u32 special_from_name(std::string_view name);

}  // namespace tkpy::emulator
