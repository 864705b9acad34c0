// wgmma.mma_async (PTX ISA 9.7.15). The four warps of a warpgroup issue one by one; when the last has, the operation may
// run at any time up to the wait that covers it, in order of issue. Registers and shared memory are read then, not at issue:
// a program that touches them too early sees the wrong values, as on the machine.
#include <bit>

#include "exec.h"
#include "race.h"

namespace tkpy::emulator {

namespace {

Warpgroup& group_of(Warp& w) {
  Cta& cta = *w.cta;
  const std::size_t index = w.index / 4;
  if (cta.warpgroups.size() <= index) cta.warpgroups.resize(index + 1);
  return cta.warpgroups[index];
}

// An operand in shared memory and its units of 16 bytes; those outside are reported by the product itself.
struct SharedOperand {
  bool is_a;
  u64 descriptor;
  tensor::Operand what;
  std::vector<u32> units;
  SharedOperand(bool a, u64 bits, const tensor::Operand& operand)
      : is_a(a), descriptor(bits), what(operand), units(tensor::operand_units(operand)) {
    tensor::operand_addresses(tensor::decode_descriptor(bits), operand, units.data());
  }
  u32 row(std::size_t unit) const { return static_cast<u32>(what.mn_major ? unit % (what.mn / 8) * 8 : unit / what.units); }
};

bool inside(const SharedMemory& shared, u32 unit) { return unit >= kSharedBase && unit + 16 <= kSharedBase + shared.init.size(); }

std::string check_written(const SharedMemory& shared, const SharedOperand& operand) {
  for (u32 unit : operand.units) {
    if (!inside(shared, unit)) continue;
    const u8* init = &shared.init[unit - kSharedBase];
    if (const void* hole = std::memchr(init, 0, 16))
      return std::string("wgmma reads operand ") + (operand.is_a ? "A" : "B") + " at shared address " +
             std::to_string(unit + (static_cast<const u8*>(hole) - init)) + ", which was never written";
  }
  return {};
}

u32 wgmma_component(Cluster& c, Warpgroup& g) {
  if (!g.component) g.component = new_component(c, Component::wgmma);
  return g.component;
}

// Reads of one operand by the product. What a warp reads must come before its own issue: all of B, its 16 rows of A (programs
// that store their own rows of A meet by warps only). One chain a warpgroup: a warp's wait_group covers the product of all four.
void touch_operands(Cluster& c, Cta& cta, std::size_t index, const PendingWgmma& p, const std::vector<SharedOperand>& operands) {
  Warpgroup& g = cta.warpgroups[index];
  Accessor a;
  a.cluster = &c;
  a.warp = &cta.warps[index * 4];
  a.site = c.site_index_of(p.site);
  a.component = wgmma_component(c, g);
  a.time = static_cast<u32>(g.done);
  a.agent = a.async = true;
  visit(cta, a);
  Reader readers[4];
  for (u32 w = 0; w < 4; ++w) readers[w] = {&cta.warps[index * 4 + w], &p.start[w]};
  const Clock all = common_to(readers);
  for (const SharedOperand& operand : operands) {
    for (std::size_t i = 0; i < operand.units.size(); ++i) {
      if (!inside(cta.shared, operand.units[i])) continue;
      const auto warps = operand.is_a ? std::span(readers).subspan(operand.row(i) / 16, 1) : std::span(readers);
      read_for_warps(a, warps, all, cta, operand.units[i], 16);
    }
  }
}

void check(Cluster& c, Cta& cta, std::size_t index, const PendingWgmma& p) {
  const Warp& first = cta.warps[index * 4];
  std::vector<SharedOperand> operands;
  operands.emplace_back(false, p.descriptor_b[0], tensor::wgmma_operand_b(*p.op));
  if (!p.op->a_in_registers) operands.emplace_back(true, p.descriptor_a[0], tensor::wgmma_operand_a(*p.op));
  std::string unwritten, reason, doubt;
  for (const SharedOperand& operand : operands) {
    if (unwritten.empty()) unwritten = check_written(cta.shared, operand);
    if (reason.empty()) reason = tensor::descriptor_reason(operand.descriptor, operand.what);
    if (doubt.empty()) doubt = tensor::descriptor_doubt(operand.descriptor, operand.what);
  }
  if (!unwritten.empty()) c.report_at(Check::uninitialised_read, p.site, first, 0, unwritten);
  if (reason.empty()) reason = doubt;
  if (!reason.empty()) c.report_at(Check::wgmma_misuse, p.site, first, 0, reason);
  touch_operands(c, cta, index, p, operands);
}

void execute(Cluster& c, Cta& cta, std::size_t index) {
  Warpgroup& g = cta.warpgroups[index];
  PendingWgmma p = std::move(g.queue.front());
  g.queue.erase(g.queue.begin());
  ++g.done;
  ++c.progress;
  const Warp& first = cta.warps[index * 4];
  for (u32 w = 1; w < 4; ++w) {
    if ((p.op->a_in_registers || p.descriptor_a[w] == p.descriptor_a[0]) && p.descriptor_b[w] == p.descriptor_b[0] &&
        (p.accumulate >> w & 1) == (p.accumulate & 1))
      continue;
    c.report_at(Check::wgmma_misuse, p.site, cta.warps[index * 4 + w], 0, "wgmma with a descriptor or scale-d that differs from that of warp 0 of its warpgroup");
  }
  if (c.launch->config->checks) check(c, cta, index, p);
  std::vector<const u32*> a;
  std::vector<u32*> d;
  for (u32 w = 0; w < 4; ++w) {
    a.insert(a.end(), p.a[w].begin(), p.a[w].end());
    d.insert(d.end(), p.d[w].begin(), p.d[w].end());
  }
  const tensor::SharedBytes shared{cta.shared.data.data(), kSharedBase, static_cast<u32>(cta.shared.data.size())};
  const std::string error = tensor::wgmma(*p.op, shared, a.data(), p.descriptor_a[0], p.descriptor_b[0], p.accumulate & 1, d.data(), p.metadata, c.launch->config->sums());
  if (!error.empty()) c.report_at(Check::out_of_bounds, p.site, first, 0, error);
}

}  // namespace

bool run_wgmma(Cluster& c) {
  for (Cta& cta : c.ctas) {
    for (std::size_t i = 0; i < cta.warpgroups.size(); ++i) {
      if (cta.warpgroups[i].queue.empty() || cta.warpgroups[i].queue.front().arrived != 15) continue;
      execute(c, cta, i);
      return true;
    }
  }
  return false;
}

// The rows of `frame` go away: what was to write them can no longer run.
void cancel_wgmma(Warp& w, const Frame* frame) {
  if (w.cta->warpgroups.size() <= w.index / 4) return;
  Warpgroup& g = w.cta->warpgroups[w.index / 4];
  bool found = false;
  for (const PendingWgmma& p : g.queue)
    for (const Frame* f : p.frames) found |= f == frame;
  if (!found) return;
  Cluster& c = *w.cta->cluster;
  while (!g.queue.empty() && g.queue.front().arrived == 15) execute(c, *w.cta, w.index / 4);
  if (!g.queue.empty()) {
    c.report_at(Check::wgmma_misuse, g.queue.front().site, w, 0, "a warp left while its warpgroup's wgmma waits for the other warps");
    c.stopped = true;
    g.queue.clear();
  }
}

u64 wgmma_finished(const Warp& w) {
  const std::size_t index = w.index / 4;
  return index < w.cta->warpgroups.size() ? w.cta->warpgroups[index].done : 0;
}

void exec_wgmma(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  Warp& w = *x.warp;
  const u32 lane = static_cast<u32>(std::countr_zero(mask));
  if (w.index / 4 * 4 + 4 > x.cta->warps.size()) {
    x.report(Check::invalid_instruction, op, lane, "wgmma by a warp whose warpgroup does not have four warps");
    return;
  }
  Warpgroup& g = group_of(w);
  const Function& f = *x.frame->fn->function;
  const u64 at = w.wgmma_issued++ - g.done;
  if (g.queue.size() <= at) g.queue.resize(at + 1);
  PendingWgmma& p = g.queue[at];
  const tensor::WgmmaOp* what = &f.wgmma_ops[static_cast<std::size_t>(op.imm)];
  const SiteKey site = x.site(op);
  if (p.arrived && p.op != what) {
    x.report(Check::wgmma_misuse, op, lane, "the warps of a warpgroup issue different wgmma instructions", p.site, 0, 0, x.cta->linear);
    x.cluster->stopped = true;
    x.event |= Exec::stop;
    return;
  }
  p.op = what;
  p.site = site;
  const u32 slot = w.index % 4;
  const u32* list = f.lists.data() + op.list;
  const u32 registers = tensor::wgmma_registers(*what);
  for (u32 i = 0; i < registers; ++i) p.d[slot].push_back(x.row<u32>(list[i]));
  if (what->a_in_registers)
    for (u32 i = 0; i < 4; ++i) p.a[slot].push_back(x.row<u32>(list[registers + i]));
  else
    p.descriptor_a[slot] = x.row<u64>(op.s[0])[lane];
  if (what->sparse) p.metadata[slot] = x.row<u32>(list[registers + (what->a_in_registers ? 4 : 0)]);
  p.descriptor_b[slot] = x.row<u64>(op.s[1])[lane];
  p.accumulate |= (x.pred(op.s[2]) >> lane & 1) << slot;
  p.frames[slot] = x.frame;
  if (!p.arrived) p.fences = w.wgmma_fences, p.commits = w.wgmma_commits;
  else if (p.fences != w.wgmma_fences || p.commits != w.wgmma_commits)
    x.report(Check::wgmma_misuse, op, lane,
             std::string(p.fences != w.wgmma_fences ? "wgmma.fence" : "wgmma.commit_group") +
                 " was executed by some warps of the warpgroup and not by others before this wgmma");
  w.wgmma_last = site;
  watch_wgmma(x, op, x.pred(op.s[2]));
  if (x.checked) publish(w, mask, p.start[slot]);
  p.arrived |= 1u << slot;
  ++x.cluster->progress;
}

void exec_wgmma_fence(Exec& x, const Op& op, u32 mask) {
  if (converge(x, op, mask, kFullMask)) ++x.warp->wgmma_fences;
}

void exec_wgmma_commit(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  x.warp->wgmma_groups.push_back(x.warp->wgmma_issued);
  ++x.warp->wgmma_commits;
}

void exec_wgmma_wait(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  auto& groups = x.warp->wgmma_groups;
  const std::size_t keep = static_cast<std::size_t>(op.imm);
  if (groups.size() <= keep) return;
  const u64 target = groups[groups.size() - 1 - keep];
  if (wgmma_finished(*x.warp) < target) {
    Wait wait;
    wait.kind = Wait::wgmma;
    wait.phase = target;
    x.split_waiting(mask, x.pc - 1, wait);
    return;
  }
  if (x.checked) observe(*x.warp, mask, wgmma_component(*x.cluster, group_of(*x.warp)), static_cast<u32>(target));
  groups.erase(groups.begin(), groups.end() - static_cast<std::ptrdiff_t>(keep));
  x.warp->wgmma_waited = target;
}

}  // namespace tkpy::emulator
