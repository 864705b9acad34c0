// Branches, calls, exits, special registers (PTX ISA 9.7.12, 10).
#include <algorithm>
#include <bit>

#include "exec.h"
#include "race.h"
#include "specials.h"

namespace tkpy::emulator {

void exec_special(Exec& x, const Op& op, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 v = special_value(x, op.a, lane);
    if (op.b) x.row<u64>(op.d[0])[lane] = v;
    else x.row<u32>(op.d[0])[lane] = static_cast<u32>(v);
  }
}

u64 special_value(const Exec& x, u32 special, u32 lane) {
  const LaunchConfig& c = *x.launch->config;
  const Cta& cta = *x.cta;
  const u32 thread = x.warp->index * kLanes + lane;
  const u32 bit = 1u << lane;
  switch (static_cast<Special>(special)) {
    case Special::tid_x: return thread % c.block.x;
    case Special::tid_y: return thread / c.block.x % c.block.y;
    case Special::tid_z: return thread / c.block.x / c.block.y;
    case Special::ntid_x: return c.block.x;
    case Special::ntid_y: return c.block.y;
    case Special::ntid_z: return c.block.z;
    case Special::ctaid_x: return cta.x;
    case Special::ctaid_y: return cta.y;
    case Special::ctaid_z: return cta.z;
    case Special::nctaid_x: return c.grid.x;
    case Special::nctaid_y: return c.grid.y;
    case Special::nctaid_z: return c.grid.z;
    case Special::clusterid_x: return cta.x / c.cluster.x;
    case Special::clusterid_y: return cta.y / c.cluster.y;
    case Special::clusterid_z: return cta.z / c.cluster.z;
    case Special::nclusterid_x: return c.grid.x / c.cluster.x;
    case Special::nclusterid_y: return c.grid.y / c.cluster.y;
    case Special::nclusterid_z: return c.grid.z / c.cluster.z;
    case Special::cluster_ctaid_x: return cta.x % c.cluster.x;
    case Special::cluster_ctaid_y: return cta.y % c.cluster.y;
    case Special::cluster_ctaid_z: return cta.z % c.cluster.z;
    case Special::cluster_nctaid_x: return c.cluster.x;
    case Special::cluster_nctaid_y: return c.cluster.y;
    case Special::cluster_nctaid_z: return c.cluster.z;
    case Special::cluster_ctarank: return cta.rank;
    case Special::cluster_nctarank: return x.launch->cluster_ctas;
    case Special::is_explicit_cluster: return x.launch->cluster_ctas > 1;
    case Special::laneid: return lane;
    case Special::warpid: return x.warp->index;
    case Special::nwarpid: return (c.block.count() + kLanes - 1) / kLanes;
    case Special::smid: return cta.linear % 132;
    case Special::nsmid: return 132;
    case Special::lanemask_eq: return bit;
    case Special::lanemask_le: return bit | (bit - 1);
    case Special::lanemask_lt: return bit - 1;
    case Special::lanemask_ge: return ~(bit - 1);
    case Special::lanemask_gt: return ~(bit | (bit - 1));
    // Time is the number of warp instructions this CTA's cluster has run: it moves forward and is the same every run.
    case Special::clock:
    case Special::clock64:
    case Special::globaltimer:
    case Special::globaltimer_lo: return x.cluster->executed + x.cluster->clock_offset;
    case Special::dynamic_smem_size: return c.dynamic_shared;
    // PTX ISA 10.28, 10.29: in units of allocation, 128 bytes; the aggregate counts what the system reserves.
    case Special::total_smem_size: return align_up(cta.shared.data.size(), 128);
    case Special::aggr_smem_size: return align_up(cta.shared.data.size(), 128) + kSharedBase;
    case Special::warp_size: return kLanes;
    case Special::clock_hi:
    case Special::globaltimer_hi: return (x.cluster->executed + x.cluster->clock_offset) >> 32;
    case Special::reserved_smem_end: return kSharedBase;  // the system's part of shared memory starts at 0
    // Cooperative groups' workspace of the grid, high and low half of its address (cooperative_groups/details/driver_abi.h).
    case Special::envreg1: return reinterpret_cast<u64>(x.launch->grid_workspace.data()) >> 32;
    case Special::envreg2: return reinterpret_cast<u64>(x.launch->grid_workspace.data());
    default: return 0;  // %gridid, other %envreg, %current_graph_exec (no graph), %pm (no profiler)
  }
}

void exec_bra(Exec& x, const Op& op, u32 mask) {
  const u32 target = static_cast<u32>(op.imm);
  const u32 stay = x.active & ~mask;
  if (stay) x.split(stay, x.pc);
  x.active = mask;
  x.pc = target;
}

void exec_brx(Exec& x, const Op& op, u32 mask) {
  const u32 stay = x.active & ~mask;
  if (stay) x.split(stay, x.pc);
  const u32* index = x.row<u32>(op.s[0]);
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  u32 first_target = kNone;
  x.active = 0;
  while (mask) {
    const u32 leader = static_cast<u32>(std::countr_zero(mask));
    if (index[leader] >= op.list_size) {
      x.report(Check::invalid_instruction, op, leader, "brx.idx with index " + std::to_string(index[leader]) + " of a table of " +
                                                           std::to_string(op.list_size));
      return;
    }
    u32 lanes = 0;
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      if (index[lane] < op.list_size && list[index[lane]] == list[index[leader]]) lanes |= 1u << lane;
    }
    mask &= ~lanes;
    if (first_target == kNone) {
      first_target = list[index[leader]];
      x.active = lanes;
    } else {
      x.split(lanes, list[index[leader]]);
    }
  }
  x.pc = first_target;
}

namespace {

// A sibling frame (same call from the same place, made earlier by other lanes) is joined, so that lanes which diverged
// before a call can still meet inside it; unless it lies in what these lanes have taken by alloca since.
Frame* find_sibling(Warp& w, Frame* parent, const LinkedFunction* fn, u32 return_pc, u32 base) {
  for (const auto& f : w.frames)
    if (f->live && f->parent == parent && f->fn == fn && f->return_pc == return_pc && f->local_base >= base) return f.get();
  return nullptr;
}

// One side of an argument or a result: a register of `frame`, or a piece of its slice of local memory.
struct Place {
  const Frame& frame;
  u32 reg_row;
  bool wide;
  u32 frame_offset, bytes;
  template <class S>
  Place(const Frame& f, const S& s) : frame(f), reg_row(s.reg_row), wide(s.wide), frame_offset(s.frame_offset), bytes(s.bytes) {}

  // Arguments may be constants of the running function.
  u8* row(Exec& x) const { return &frame == x.frame ? x.row<u8>(reg_row) : frame.rows + std::size_t{reg_row} * kRowBytes; }
};

void move_value(Exec& x, const Place& from, const Place& to, u32 lane) {
  u8* local = x.warp->local.data() + u64{lane} * x.warp->local_stride;
  u8 buffer[8] = {};
  const u8* source = local + from.frame.local_base + from.frame_offset;
  u32 bytes = std::min(from.bytes, to.bytes);
  if (from.reg_row != kNone) {
    const u64 v = from.wide ? reinterpret_cast<u64*>(from.row(x))[lane] : reinterpret_cast<u32*>(from.row(x))[lane];
    std::memcpy(buffer, &v, 8);
    source = buffer;
    bytes = std::min(to.bytes, 8u);
  }
  if (to.reg_row == kNone) {
    std::memmove(local + to.frame.local_base + to.frame_offset, source, bytes);
    return;
  }
  u64 v = 0;
  std::memcpy(&v, source, std::min(bytes, 8u));
  if (to.wide) reinterpret_cast<u64*>(to.row(x))[lane] = v;
  else reinterpret_cast<u32*>(to.row(x))[lane] = static_cast<u32>(v);
}

template <class From, class To>
void move_values(Exec& x, const Frame& from, const std::vector<From>& sources, const Frame& to, const std::vector<To>& targets, u32 lanes) {
  for (std::size_t k = 0; k < std::min(sources.size(), targets.size()); ++k)
    for (u32 rest = lanes; rest; rest &= rest - 1)
      move_value(x, Place(from, sources[k]), Place(to, targets[k]), static_cast<u32>(std::countr_zero(rest)));
}

bool enter(Exec& x, const Op& op, const CallSite& site, u32 target, u32 lanes) {
  const LinkedFunction& fn = x.launch->linked->functions[target];
  if (!fn.function || fn.ops.empty()) {
    x.report(Check::bad_call, op, static_cast<u32>(std::countr_zero(lanes)), "call of a function without a body");
    return false;
  }
  const auto& extra = x.frame->extra_bytes;
  const u32 above = x.frame->local_base + x.frame->fn->function->frame_bytes + *std::max_element(extra.begin(), extra.end());
  const u32 base = static_cast<u32>(align_up(above, 16));
  Frame* callee = find_sibling(*x.warp, x.frame, &fn, x.pc, base);
  if (callee) callee->live |= lanes, start_watching(*callee, lanes);
  else callee = push_frame(*x.warp, &fn, lanes, x.frame, base);
  if (!callee || !grow_local(*x.warp, base + fn.function->frame_bytes, x.checked)) {
    x.report(Check::stack_overflow, op, static_cast<u32>(std::countr_zero(lanes)),
             "calls nested too deeply: the thread's stack would pass 512 KiB or 4096 calls");
    return false;
  }
  callee->return_pc = x.pc;
  callee->site = &site;
  move_values(x, *x.frame, site.params, *callee, fn.function->params, lanes);
  x.split_into(lanes, callee);
  return true;
}

}  // namespace

void exec_call(Exec& x, const Op& op, u32 mask) {
  const CallSite& site = x.frame->fn->function->calls[op.list];
  const u32 stay = x.active & ~mask;
  if (stay) x.split(stay, x.pc);
  x.active = 0;
  x.event |= Exec::regroup;
  if (site.target != kNone) {
    enter(x, op, site, site.target, mask);
    return;
  }
  const u64* address = x.row<u64>(site.target_row);
  while (mask) {
    const u64 to = address[std::countr_zero(mask)];
    u32 lanes = 0;
    for (u32 rest = mask; rest; rest &= rest - 1)
      if (address[std::countr_zero(rest)] == to) lanes |= 1u << std::countr_zero(rest);
    mask &= ~lanes;
    const u64 index = to & ((u64{1} << kWindowShift) - 1);
    const auto& functions = x.launch->linked->functions;
    const u32 lane = static_cast<u32>(std::countr_zero(lanes));
    if (to >> kWindowShift != kCodeWindow >> kWindowShift || index >= functions.size() || !functions[index].function) {
      x.report(Check::bad_call, op, lane, "indirect call of something that is not a function of the module");
      return;
    }
    const Function& fn = *functions[index].function;
    if (fn.params.size() != site.params.size() || fn.returns.size() != site.returns.size()) {
      x.report(Check::bad_call, op, lane, "indirect call of '" + fn.ast->name + "' with other parameters than it has");
      return;
    }
    if (!enter(x, op, site, static_cast<u32>(index), lanes)) return;
  }
}

void exec_ret(Exec& x, const Op& op, u32 mask) {
  Frame* frame = x.frame;
  if (!frame->parent) return exec_exit(x, op, mask);
  const u32 stay = x.active & ~mask;
  if (stay) x.split(stay, x.pc);
  move_values(x, *frame, frame->fn->function->returns, *frame->parent, frame->site->returns, mask);
  Frame* parent = frame->parent;
  x.pc = frame->return_pc;
  x.active = mask;
  x.frame = parent;
  x.event |= Exec::regroup;
  release_lanes(*x.warp, frame, mask);
}

void exec_exit(Exec& x, const Op&, u32 mask) {
  x.active &= ~mask;
  if (x.checked) retire(*x.warp, mask, x.cta->ended);
  x.warp->alive &= ~mask;
  for (Frame* f = x.frame; f;) {
    Frame* parent = f->parent;
    release_lanes(*x.warp, f, mask);
    f = parent;
  }
  x.event |= Exec::regroup;
  ++x.cluster->progress;
  if (x.warp->alive) return;
  check_wgmma_waited(x);
  check_setmaxnreg(x);
  retry_barriers(*x.cta);
  if (std::none_of(x.cta->warps.begin(), x.cta->warps.end(), [](const Warp& w) { return w.alive != 0; }))
    end_cta(*x.cluster, *x.cta);
}

void exec_trap(Exec& x, const Op& op, u32 mask) {
  x.report(Check::trap, op, static_cast<u32>(std::countr_zero(mask)), "trap");
}

void exec_brkpt(Exec&, const Op&, u32) {}  // no debugger is attached

void exec_unmodelled(Exec& x, const Op& op, u32 mask) {
  const Unmodelled& u = x.frame->fn->function->unmodelled[static_cast<std::size_t>(op.imm)];
  x.report(Check::unmodelled, op, static_cast<u32>(std::countr_zero(mask)), "not modelled: " + u.text + " (" + u.reason + ")");
}

void exec_nanosleep(Exec& x, const Op& op, u32 mask) {
  u32 longest = 0;
  for (u32 rest = mask; rest; rest &= rest - 1) longest = std::max(longest, x.row<u32>(op.s[0])[std::countr_zero(rest)]);
  x.cluster->clock_offset += longest;
  x.event |= Exec::preempt | Exec::spin;
}

}  // namespace tkpy::emulator
