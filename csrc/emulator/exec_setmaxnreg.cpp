// setmaxnreg (PTX ISA 9.7.19.5): warps give registers to a pool of their CTA and take them from it. An increase blocks until
// the pool holds enough; the pool starts empty, and what a warp holds at its end stays with it.
#include <algorithm>

#include "exec.h"

namespace tkpy::emulator {

// The ISA asks for "a valid value of maximum number of per-thread registers"; the rest is what ptxas 13.0 does. The bound is
// .maxnreg, or with .minnctapersm the 65536 registers of an SM shared by that many CTAs of .maxntid (.reqntid) threads,
// counted in whole warpgroups; in steps of 8. No more than the largest operand is taken. Without a bound ptxas ignores
// setmaxnreg (its message C7508), and it has no effect here.
u32 entry_registers(const FunctionAst& kernel, u32 most_requested) {
  const u32* size = kernel.required_threads[0] ? kernel.required_threads : kernel.max_threads;
  const u64 threads = std::min<u64>(size[0], 1024) * std::min<u64>(size[1], 1024) * std::min<u64>(size[2], 1024);
  u64 bound = kernel.max_registers ? kernel.max_registers : 0;
  if (threads && kernel.min_ctas) {
    const u64 share = std::min<u64>(256, 65536 / (align_up(threads, 128) * kernel.min_ctas) / 8 * 8);
    bound = bound ? std::min(bound, share) : share;
  }
  return static_cast<u32>(std::min<u64>(align_up(bound, 8), most_requested));
}

namespace {

Warpgroup& warpgroup(Warp& w) {
  Cta& cta = *w.cta;
  if (cta.warpgroups.size() <= w.index / 4) cta.warpgroups.resize(w.index / 4 + 1);
  return cta.warpgroups[w.index / 4];
}

// All warps of a warpgroup execute the same setmaxnreg, and meet before the next.
void check_warpgroup(Exec& x, const Op& op, u32 lane) {
  Warp& w = *x.warp;
  Warpgroup& g = warpgroup(w);
  const Warpgroup::Setmaxnreg mine{op.imm, op.a != 0, x.site(op)};
  if (g.setmaxnregs.size() <= w.setmaxnregs) g.setmaxnregs.push_back(mine);
  const Warpgroup::Setmaxnreg& first = g.setmaxnregs[w.setmaxnregs];
  if (first.registers != mine.registers || first.increase != mine.increase)
    x.report(Check::setmaxnreg, op, lane, "the warps of a warpgroup execute different setmaxnreg", first.site, w.index / 4 * 4, 0, x.cta->linear);
  for (u32 i = w.index / 4 * 4; i < w.index / 4 * 4 + 4 && i < x.cta->warps.size(); ++i) {
    const Warp& o = x.cta->warps[i];
    if (&o == &w) continue;
    // A warp that has gone through this one already met the others after the one before.
    const u32 met = o.setmaxnregs > w.setmaxnregs ? o.setmaxnreg_before : o.setmaxnreg_time;
    if (!o.alive && o.setmaxnregs <= w.setmaxnregs)
      x.report(Check::setmaxnreg, op, lane, "warp " + std::to_string(i) + " of this warpgroup ended without this setmaxnreg");
    else if (w.setmaxnregs && (o.setmaxnregs < w.setmaxnregs || !covers(w.order.clock.seen, o.id, met)))
      x.report(Check::setmaxnreg, op, lane, "the warpgroup has not synchronised since its last setmaxnreg");
  }
}

}  // namespace

void exec_setmaxnreg(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, x.warp->alive)) return;
  Warp& w = *x.warp;
  const u32 lane = 0, wanted = static_cast<u32>(op.imm);
  if (!x.launch->registers) return;
  check_warpgroup(x, op, lane);
  if (op.a ? wanted < w.registers : wanted > w.registers) {
    x.report(Check::setmaxnreg, op, lane,
             std::string(op.a ? "an increase" : "a decrease") + " to " + std::to_string(wanted) + " registers a thread, where it has " +
                 std::to_string(w.registers));
  } else if (op.a) {
    if (x.cta->register_pool < wanted - w.registers) {
      Wait wait;
      wait.kind = Wait::registers;
      wait.id = wanted - w.registers;
      return x.split_waiting(mask, x.pc - 1, wait);
    }
    x.cta->register_pool -= wanted - w.registers;
    w.registers = wanted;
  } else {
    x.cta->register_pool += w.registers - wanted;
    w.registers = wanted;
  }
  ++w.setmaxnregs;
  w.setmaxnreg_before = w.setmaxnreg_time;
  w.setmaxnreg_time = w.order.now;
  ++x.cluster->progress;
  x.yield_point();
}

void check_setmaxnreg(Exec& x) {
  const Warp& w = *x.warp;
  if (x.cta->warpgroups.size() <= w.index / 4) return;
  const auto& executed = x.cta->warpgroups[w.index / 4].setmaxnregs;
  if (w.setmaxnregs < executed.size())
    x.cluster->report_at(Check::setmaxnreg, executed[w.setmaxnregs].site, w, 0,
                         "warp " + std::to_string(w.index) + " ended without this setmaxnreg, which others of its warpgroup execute");
}

std::string describe_registers(const Cta& cta) {
  std::string text = "CTA " + std::to_string(cta.linear) + " was launched with " +
                     std::to_string(cta.cluster->launch->registers) + " registers a thread; the pool holds " +
                     std::to_string(cta.register_pool) + " for one warp; warps hold";
  for (const Warp& w : cta.warps) text += (w.index ? ", " : " ") + std::to_string(w.registers);
  return text;
}

}  // namespace tkpy::emulator
