// What happens to watched registers (watch.cpp): touched while a wgmma uses them, used by a wgmma that no fence separates
// from other instructions, read on a lane that never wrote them.
//
// A `mov` is the register by another name: PTX registers are virtual, compilers put copies between wgmma, and ptxas
// joins them again. So a copy takes over what is known of its source; where that is in flight, the copy is made when it
// has landed.
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

namespace {

struct Watched {
  Exec& x;
  const Op& op;
  const Function& f;
  const Watch& watch;
  u32 mask;

  u32 ref(u32 i) const { return f.watch_refs[watch.first + i]; }
  RegisterState* state(u32 i) const { return ref(i) == kNone ? nullptr : &x.frame->watched[ref(i)]; }
  u32 lane() const { return static_cast<u32>(std::countr_zero(mask)); }
  std::string name(u32 i) const {
    const u32 vreg = f.watched[ref(i)].vreg;
    return vreg < f.ast->registers.size() ? f.ast->registers[vreg].name : "a register of this instruction";
  }
  SiteKey at(u32 op_index) const { return {f.index, op_index}; }
  u32 op_index() const { return static_cast<u32>(&op - x.frame->fn->ops.data()); }
  bool in_flight(const RegisterState& s) const { return s.wgmma > x.warp->wgmma_waited; }
  void report(Check check, const std::string& text, u32 other) const {
    x.report(check, op, lane(), text, at(other), x.warp->index, lane(), x.cta->linear);
  }
};

// A copy of a register that a wgmma writes waits for it. False: the group waits.
bool landed(const Watched& w) {
  u64 last = 0;
  for (u32 i = 0; i < w.watch.uses + w.watch.defs; ++i)
    if (const RegisterState* s = w.state(i); s && w.in_flight(*s)) last = std::max(last, s->wgmma);
  if (w.watch.uses == 0 || wgmma_finished(*w.x.warp) >= last) return true;
  Wait wait;
  wait.kind = Wait::wgmma;
  wait.phase = last;
  w.x.split_waiting(w.mask, w.x.pc - 1, wait);
  return false;
}

void check_touch(const Watched& w, u32 i, bool writes) {
  RegisterState& s = *w.state(i);
  if (w.in_flight(s))
    w.report(Check::wgmma_in_flight,
             w.name(i) + " is " + (writes ? "written" : "read") + " while a wgmma that " +
                 (s.accumulates ? "accumulates into it" : "reads A from it") +
                 " is in flight: no wgmma.wait_group covers it yet",
             s.wgmma_op);
  s.touched = w.x.warp->wgmma_fences + 1;
  s.touched_by = w.op_index();
}

// PTX ISA 9.7.15.7.1 (wgmma.fence), 9.7.15.7.3 (wgmma.wait_group).
void check_matrix_registers(const Watched& w) {
  const u32 n = w.watch.uses + w.watch.defs;
  if (w.watch.rule != Watch::move) {
    for (u32 i = 0; i < n; ++i)
      if (w.ref(i) != kNone && w.f.watched[w.ref(i)].matrix) check_touch(w, i, i >= w.watch.uses);
    return;
  }
  RegisterState* to = w.watch.defs ? w.state(w.watch.uses) : nullptr;
  if (!to) return;
  const RegisterState* from = w.watch.uses ? w.state(0) : nullptr;
  if (!(from && from->wgmma) && w.in_flight(*to)) check_touch(w, w.watch.uses, true);
  const u32 undefined = to->undefined, touched = to->touched, by = to->touched_by;
  *to = from ? *from : RegisterState{};
  to->undefined = undefined;
  if (touched > to->touched) to->touched = touched, to->touched_by = by;
}

u32 undefined_lanes(const Watched& w) {
  auto lanes = [&](u32 i) { return i < w.watch.uses && w.state(i) ? w.state(i)->undefined : 0; };
  if (w.watch.rule == Watch::select) {
    const u32 chosen = w.x.pred(w.op.s[2]);
    return (chosen & lanes(0)) | (~chosen & lanes(1));
  }
  u32 any = 0, all = w.watch.complete && w.watch.uses ? kFullMask : 0;
  for (u32 i = 0; i < w.watch.uses; ++i) any |= lanes(i), all &= lanes(i);
  return w.watch.rule == Watch::all ? all : any;
}

void report_undefined(const Watched& w, u32 i, u32 lanes) {
  w.x.report(Check::uninitialised_register, w.op, static_cast<u32>(std::countr_zero(lanes)),
             w.name(i) + " is used here, and " +
                 (w.f.watched[w.ref(i)].unwritten ? "nothing writes it" : "it, or what it was computed from, was not written before on this lane"));
}

void check_defined(const Watched& w) {
  const Watch::Rule rule = w.watch.rule;
  for (u32 i = 0; i < w.watch.uses; ++i) {
    const u32 lanes = w.state(i) ? w.state(i)->undefined & w.mask : 0;
    if (!lanes) continue;
    if (rule == Watch::need || (rule == Watch::condition && w.f.watched[w.ref(i)].unwritten)) report_undefined(w, i, lanes);
  }
  const u32 undefined = rule <= Watch::move ? undefined_lanes(w) & w.mask : 0;
  for (u32 i = w.watch.uses; i < w.watch.uses + w.watch.defs; ++i)
    if (RegisterState* s = w.state(i)) s->undefined = (s->undefined & ~w.mask) | undefined;
}

}  // namespace

void start_watching(Frame& frame, u32 lanes) {
  const auto& registers = frame.fn->function->watched;
  for (std::size_t i = 0; i < registers.size(); ++i)
    if (registers[i].undefined) frame.watched[i].undefined |= lanes;
}

void exec_watched(Exec& x, const Op& op, u32 mask) {
  const Function& f = *x.frame->fn->function;
  const u32 index = static_cast<u32>(&op - x.frame->fn->ops.data());
  const Watch& watch = f.watches[f.watch_of_op[index]];
  const Watched w{x, op, f, watch, mask};
  const bool matrix = x.warp->wgmma_issued || x.warp->wgmma_fences;
  if (matrix && watch.rule == Watch::move && !landed(w)) return;
  if (matrix) check_matrix_registers(w);
  if (x.checked) check_defined(w);
  watch.fn(x, op, mask);
}

// A wgmma takes hold of its registers: its accumulators, then those of A.
void watch_wgmma(Exec& x, const Op& op, u32 accumulate) {
  const Function& f = *x.frame->fn->function;
  const u32 index = static_cast<u32>(&op - x.frame->fn->ops.data());
  const tensor::WgmmaOp& what = f.wgmma_ops[static_cast<std::size_t>(op.imm)];
  const Watched w{x, op, f, f.watches[f.watch_of_op[index]], kFullMask};
  Warp& warp = *x.warp;
  const u32 registers = tensor::wgmma_registers(what), now = warp.wgmma_fences + 1;
  if (warp.wgmma_fences == 0)
    x.report(Check::wgmma_fence, op, 0, "no wgmma.fence before the first wgmma of the warp");
  for (u32 i = 0; i < registers + (what.a_in_registers ? 4 : 0); ++i) {
    RegisterState& s = *w.state(i);
    const bool d = i < registers;
    if (const u32 lanes = d ? s.undefined & accumulate : s.undefined) report_undefined(w, i, lanes);
    if (s.touched == now) {
      w.report(Check::wgmma_fence, w.name(i) + " was touched by another instruction after the last wgmma.fence", s.touched_by);
    } else if (s.fenced == now && (s.accumulates || d)) {
      // Accumulating again in the same shape is ordered without a fence, and two reads need no order.
      const tensor::WgmmaOp& before = f.wgmma_ops[static_cast<std::size_t>(x.frame->fn->ops[s.wgmma_op].imm)];
      if (!(s.accumulates && d && (&before == &what || (before.n == what.n && tensor::wgmma_k(before) == tensor::wgmma_k(what)))))
        w.report(Check::wgmma_fence, "no wgmma.fence between two wgmma that use " + w.name(i) + " differently", s.wgmma_op);
    }
    if (d) s.undefined = 0;
    s.wgmma = warp.wgmma_issued;
    s.wgmma_op = index;
    s.fenced = now;
    s.accumulates = d;
  }
}

void check_wgmma_waited(Exec& x) {
  const Warp& w = *x.warp;
  if (w.wgmma_issued > w.wgmma_waited)
    x.cluster->report_at(Check::async_in_flight, w.wgmma_last, w, 0,
                         "the warp ended without a wgmma.wait_group that covers this wgmma" +
                             std::string(w.wgmma_groups.empty() || w.wgmma_groups.back() < w.wgmma_issued ? ": it was never committed" : ""));
}

}  // namespace tkpy::emulator
