#include "specials.h"

#include <array>
#include <unordered_map>

namespace tkpy::emulator {

u32 special_from_name(std::string_view name) {
  static const std::unordered_map<std::string_view, Special> table = {
      {"%tid.x", Special::tid_x}, {"%tid.y", Special::tid_y}, {"%tid.z", Special::tid_z}, {"%tid", Special::tid_x},
      {"%ntid.x", Special::ntid_x}, {"%ntid.y", Special::ntid_y}, {"%ntid.z", Special::ntid_z},
      {"%ctaid.x", Special::ctaid_x}, {"%ctaid.y", Special::ctaid_y}, {"%ctaid.z", Special::ctaid_z},
      {"%nctaid.x", Special::nctaid_x}, {"%nctaid.y", Special::nctaid_y}, {"%nctaid.z", Special::nctaid_z},
      {"%clusterid.x", Special::clusterid_x}, {"%clusterid.y", Special::clusterid_y},
      {"%clusterid.z", Special::clusterid_z}, {"%nclusterid.x", Special::nclusterid_x},
      {"%nclusterid.y", Special::nclusterid_y}, {"%nclusterid.z", Special::nclusterid_z},
      {"%cluster_ctaid.x", Special::cluster_ctaid_x}, {"%cluster_ctaid.y", Special::cluster_ctaid_y},
      {"%cluster_ctaid.z", Special::cluster_ctaid_z}, {"%cluster_nctaid.x", Special::cluster_nctaid_x},
      {"%cluster_nctaid.y", Special::cluster_nctaid_y}, {"%cluster_nctaid.z", Special::cluster_nctaid_z},
      {"%cluster_ctarank", Special::cluster_ctarank}, {"%cluster_nctarank", Special::cluster_nctarank},
      {"%is_explicit_cluster", Special::is_explicit_cluster}, {"%laneid", Special::laneid},
      {"%warpid", Special::warpid}, {"%nwarpid", Special::nwarpid}, {"%smid", Special::smid},
      {"%nsmid", Special::nsmid}, {"%gridid", Special::gridid}, {"%lanemask_eq", Special::lanemask_eq},
      {"%lanemask_le", Special::lanemask_le}, {"%lanemask_lt", Special::lanemask_lt},
      {"%lanemask_ge", Special::lanemask_ge}, {"%lanemask_gt", Special::lanemask_gt}, {"%clock", Special::clock},
      {"%clock_hi", Special::clock_hi}, {"%clock64", Special::clock64}, {"%globaltimer", Special::globaltimer},
      {"%globaltimer_lo", Special::globaltimer_lo}, {"%globaltimer_hi", Special::globaltimer_hi},
      {"%dynamic_smem_size", Special::dynamic_smem_size}, {"%total_smem_size", Special::total_smem_size},
      {"%aggr_smem_size", Special::aggr_smem_size}, {"WARP_SZ", Special::warp_size},
      {"%envreg1", Special::envreg1}, {"%envreg2", Special::envreg2}, {"%current_graph_exec", Special::current_graph_exec},
      {"%reserved_smem_offset_begin", Special::reserved_smem_begin},
      {"%reserved_smem_offset_end", Special::reserved_smem_end},
      {"%reserved_smem_offset_cap", Special::reserved_smem_end},
      {"%reserved_smem_offset_0", Special::reserved_smem_begin},
      {"%reserved_smem_offset_1", Special::reserved_smem_begin}};
  const auto found = table.find(name);
  if (found != table.end()) return static_cast<u32>(found->second);
  if (name.size() >= 8 && name.size() <= 9 && name.substr(0, 7) == "%envreg") return static_cast<u32>(Special::envreg);
  if (name.size() >= 4 && name.substr(0, 3) == "%pm" && name[3] >= '0' && name[3] <= '7') {
    if (name.size() == 4) return static_cast<u32>(Special::performance_monitor);
    if (name.substr(4) == "_64") return static_cast<u32>(Special::performance_monitor64);
  }
  return kNone;
}

}  // namespace tkpy::emulator
