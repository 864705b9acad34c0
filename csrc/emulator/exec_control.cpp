// Branches, calls, exits, special registers, printf (PTX ISA 9.7.12, 10).
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
    case Special::total_smem_size:
    case Special::aggr_smem_size: return cta.shared.data.size();
    case Special::warp_size: return kLanes;
    default: return 0;  // %gridid, %clock_hi, %globaltimer_hi, %envreg
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
// before a call can still meet inside it.
Frame* find_sibling(Warp& w, Frame* parent, const LinkedFunction* fn, u32 return_pc) {
  for (const auto& f : w.frames)
    if (f->live && f->parent == parent && f->fn == fn && f->return_pc == return_pc) return f.get();
  return nullptr;
}

void copy_in(Exec& x, Frame* callee, const CallSite& site, const Function& fn, u32 lanes) {
  Warp& w = *x.warp;
  const u32 caller_base = x.frame->local_base;
  u8* callee_rows = callee->rows;
  const std::size_t n = std::min(site.params.size(), fn.params.size());
  for (std::size_t k = 0; k < n; ++k) {
    const CallSlot& from = site.params[k];
    const Slot& to = fn.params[k];
    for (u32 rest = lanes; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      u8* local = w.local.data() + u64{lane} * w.local_stride;
      u8 buffer[8] = {};
      const u8* source = buffer;
      u32 bytes = std::min(from.bytes, to.bytes);
      if (from.reg_row != kNone) {
        const u64 v = from.wide ? x.row<u64>(from.reg_row)[lane] : x.row<u32>(from.reg_row)[lane];
        std::memcpy(buffer, &v, 8);
        bytes = std::min(to.bytes, 8u);
      } else {
        source = local + caller_base + from.frame_offset;
      }
      if (to.reg_row != kNone) {
        u64 v = 0;
        std::memcpy(&v, source, std::min(bytes, 8u));
        u8* row = callee_rows + std::size_t{to.reg_row} * kRowBytes;
        if (to.wide) reinterpret_cast<u64*>(row)[lane] = v;
        else reinterpret_cast<u32*>(row)[lane] = static_cast<u32>(v);
      } else {
        std::memmove(local + callee->local_base + to.frame_offset, source, bytes);
      }
    }
  }
}

void copy_out(Exec& x, const Frame& callee, u32 lanes) {
  Warp& w = *x.warp;
  const CallSite& site = *callee.site;
  const Function& fn = *callee.fn->function;
  Frame* caller = callee.parent;
  const std::size_t n = std::min(site.returns.size(), fn.returns.size());
  for (std::size_t k = 0; k < n; ++k) {
    const CallSlot& to = site.returns[k];
    const Slot& from = fn.returns[k];
    for (u32 rest = lanes; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      u8* local = w.local.data() + u64{lane} * w.local_stride;
      u8 buffer[8] = {};
      const u8* source = buffer;
      u32 bytes = std::min(from.bytes, to.bytes);
      if (from.reg_row != kNone) {
        const u8* row = callee.rows + std::size_t{from.reg_row} * kRowBytes;
        const u64 v = from.wide ? reinterpret_cast<const u64*>(row)[lane] : reinterpret_cast<const u32*>(row)[lane];
        std::memcpy(buffer, &v, 8);
        bytes = std::min(to.bytes, 8u);
      } else {
        source = local + callee.local_base + from.frame_offset;
      }
      if (to.reg_row != kNone) {
        u64 v = 0;
        std::memcpy(&v, source, std::min(bytes, 8u));
        u8* row = caller->rows + std::size_t{to.reg_row} * kRowBytes;
        if (to.wide) reinterpret_cast<u64*>(row)[lane] = v;
        else reinterpret_cast<u32*>(row)[lane] = static_cast<u32>(v);
      } else {
        std::memmove(local + caller->local_base + to.frame_offset, source, bytes);
      }
    }
  }
}

bool enter(Exec& x, const Op& op, const CallSite& site, u32 target, u32 lanes) {
  const LinkedFunction& fn = x.launch->linked->functions[target];
  if (!fn.function || fn.ops.empty()) {
    x.report(Check::bad_call, op, static_cast<u32>(std::countr_zero(lanes)), "call of a function without a body");
    return false;
  }
  const u32 base = static_cast<u32>(align_up(x.frame->local_base + x.frame->fn->function->frame_bytes + x.frame->extra_bytes, 16));
  Frame* callee = find_sibling(*x.warp, x.frame, &fn, x.pc);
  if (callee) callee->live |= lanes, start_watching(*callee, lanes);
  else callee = push_frame(*x.warp, &fn, lanes, x.frame, base);
  if (!callee || !grow_local(*x.warp, base + fn.function->frame_bytes, x.checked)) {
    x.report(Check::stack_overflow, op, static_cast<u32>(std::countr_zero(lanes)),
             "calls nested too deeply: the thread's stack would pass 512 KiB or 4096 calls");
    return false;
  }
  callee->return_pc = x.pc;
  callee->site = &site;
  copy_in(x, callee, site, *fn.function, lanes);
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
  copy_out(x, *frame, mask);
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

// ---- printf and assert -------------------------------------------------------------------------------------------------

namespace {

// Reads `bytes` at a generic address as `lane` sees it; false when there is nothing there.
bool read_generic(Exec& x, u32 lane, u64 address, u32 bytes, void* out) {
  if (address >> kWindowShift == 2) {
    const u64 offset = address & ((u64{1} << kWindowShift) - 1);
    if (offset + bytes > x.warp->local_stride) return false;
    std::memcpy(out, x.warp->local.data() + u64{lane} * x.warp->local_stride + offset, bytes);
    return true;
  }
  if (address >> kWindowShift == 1) {
    Cta* cta = nullptr;
    const u8* at = shared_range(x, static_cast<u32>(address), bytes, cta);
    if (at) std::memcpy(out, at, bytes);
    return at != nullptr;
  }
  const u8* at = address >> kWindowShift == 0 ? global_range(x, address, bytes, false) : nullptr;
  if (at) std::memcpy(out, at, bytes);
  return at != nullptr;
}

std::string read_string(Exec& x, u32 lane, u64 address, u32 limit = 4096) {
  std::string text;
  char c = 0;
  while (text.size() < limit && read_generic(x, lane, address + text.size(), 1, &c) && c) text += c;
  return text;
}

// One conversion of a format; `spec` runs from '%' to its letter.
void format_one(Exec& x, u32 lane, const std::string& spec, u64& arguments, std::string& out) {
  const char letter = spec.back();
  const bool longer = spec.find('l') != std::string::npos || spec.find('z') != std::string::npos ||
                      spec.find('j') != std::string::npos || letter == 'p';
  const bool real = std::string_view("fFeEgGaA").find(letter) != std::string_view::npos;
  const bool eight = longer || real || letter == 's';
  if (eight) arguments = align_up(arguments, 8);
  u64 bits = 0;
  if (!read_generic(x, lane, arguments, eight ? 8 : 4, &bits)) bits = 0;
  arguments += eight ? 8 : 4;
  std::string clean;
  for (char c : spec.substr(0, spec.size() - 1))
    if (c != 'l' && c != 'h' && c != 'z' && c != 'j' && c != 't') clean += c;
  if (clean.size() > 16) clean = "%";
  char buffer[512];
  if (real) {
    std::snprintf(buffer, sizeof buffer, (clean + letter).c_str(), std::bit_cast<double>(bits));
  } else if (letter == 's') {
    std::snprintf(buffer, sizeof buffer, (clean + "s").c_str(), read_string(x, lane, bits, 256).c_str());
  } else if (letter == 'c') {
    std::snprintf(buffer, sizeof buffer, (clean + "c").c_str(), static_cast<int>(bits));
  } else if (letter == 'p') {
    std::snprintf(buffer, sizeof buffer, "0x%llx", static_cast<unsigned long long>(bits));
  } else {
    const bool sign = letter == 'd' || letter == 'i';
    const long long v = sign ? (longer ? static_cast<i64>(bits) : i64{static_cast<i32>(bits)}) : static_cast<i64>(bits);
    std::snprintf(buffer, sizeof buffer, (clean + "ll" + letter).c_str(), v);
  }
  out += buffer;
}

std::string format(Exec& x, u32 lane, const std::string& text, u64 arguments) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const std::size_t end = text.find_first_not_of("0123456789.-+ #lhzjt", i + 1);
    if (end == std::string::npos) break;
    if (text[end] == '%') out += '%';
    else if (std::string_view("diouxXcspfFeEgGaA").find(text[end]) != std::string_view::npos)
      format_one(x, lane, text.substr(i, end - i + 1), arguments, out);
    i = end;
  }
  return out;
}

u64 frame_value(Exec& x, u32 lane, u32 offset, u32 bytes) {
  u64 v = 0;
  const u64 at = u64{x.frame->local_base} + offset;
  if (at + bytes <= x.warp->local_stride) std::memcpy(&v, x.warp->local.data() + u64{lane} * x.warp->local_stride + at, bytes);
  return v;
}

}  // namespace

void exec_vprintf(Exec& x, const Op& op, u32 mask) {
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const std::string text = read_string(x, lane, frame_value(x, lane, list[0], 8));
    if (x.cluster->output.size() < (1u << 22)) x.cluster->output += format(x, lane, text, frame_value(x, lane, list[1], 8));
    const u64 at = u64{x.frame->local_base} + static_cast<u64>(op.imm);
    if (op.imm >= 0 && at + 4 <= x.warp->local_stride) {
      const u32 count = static_cast<u32>(std::count(text.begin(), text.end(), '%'));
      std::memcpy(x.warp->local.data() + u64{lane} * x.warp->local_stride + at, &count, 4);
    }
  }
}

void exec_assertfail(Exec& x, const Op& op, u32 mask) {
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const u32 lane = static_cast<u32>(std::countr_zero(mask));
  x.report(Check::assertion, op, lane, "assertion failed: " + read_string(x, lane, frame_value(x, lane, list[0], 8)) + " at " +
                                           read_string(x, lane, frame_value(x, lane, list[1], 8)) + ":" +
                                           std::to_string(frame_value(x, lane, list[2], 4)));
}

}  // namespace tkpy::emulator
