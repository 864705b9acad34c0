// What runs inside a cluster: frames, lane groups of a warp and how long they run, findings. Which warp is next, and when
// asynchronous work lands, is schedule.cpp.
#include <algorithm>
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

void InstrCount::add(const InstrCount& o) {
  issues += o.issues, lanes += o.lanes;
  shared_requests += o.shared_requests, shared_wavefronts += o.shared_wavefronts, bank_conflicts += o.bank_conflicts;
  global_requests += o.global_requests, global_sectors += o.global_sectors;
  global_bytes += o.global_bytes, shared_bytes += o.shared_bytes, local_bytes += o.local_bytes;
  flops += o.flops;
}

// ---- frames ------------------------------------------------------------------------------------------------------------

constexpr u32 kMaxDepth = 4096;
constexpr u32 kMaxLocal = 512 * 1024;

Frame* push_frame(Warp& w, const LinkedFunction* fn, u32 lanes, Frame* parent, u32 local_base) {
  const u32 depth = parent ? parent->depth + 1 : 0;
  if (depth > kMaxDepth) return nullptr;
  std::unique_ptr<Frame> frame;
  if (!w.spare.empty()) {
    frame = std::move(w.spare.back());
    w.spare.pop_back();
  } else {
    frame = std::make_unique<Frame>();
  }
  frame->fn = fn;
  frame->parent = parent;
  frame->depth = depth;
  frame->live = lanes;
  frame->local_base = local_base;
  frame->extra_bytes.fill(0);
  frame->storage.assign(std::size_t{fn->function->rows()} * kLanes + 16, kPoison);
  frame->rows = reinterpret_cast<u8*>(align_up(reinterpret_cast<u64>(frame->storage.data()), 64));
  frame->preds.assign(fn->function->preds, 0);
  frame->preds[kPredTrue] = kFullMask;
  frame->watched.assign(fn->function->watched.size(), {});
  start_watching(*frame, lanes);
  w.frames.push_back(std::move(frame));
  return w.frames.back().get();
}

void release_lanes(Warp& w, Frame* frame, u32 lanes) {
  frame->live &= ~lanes;
  if (frame->live) return;
  cancel_wgmma(w, frame);
  for (std::size_t i = w.frames.size(); i-- > 0;) {
    if (w.frames[i].get() != frame) continue;
    if (w.spare.size() < 4) w.spare.push_back(std::move(w.frames[i]));
    w.frames.erase(w.frames.begin() + static_cast<std::ptrdiff_t>(i));
    return;
  }
}

bool grow_local(Warp& w, u32 bytes, bool checked) {
  if (bytes <= w.local_stride) return true;
  if (bytes > kMaxLocal) return false;
  const u32 stride = std::min<u32>(kMaxLocal, static_cast<u32>(align_up(std::max(bytes, 2 * w.local_stride), 64)));
  std::vector<u8> memory(std::size_t{stride} * kLanes), init(checked ? memory.size() : 0);
  for (std::size_t i = 0; i + 4 <= memory.size(); i += 4) std::memcpy(&memory[i], &kPoison, 4);
  for (u32 lane = 0; lane < kLanes && w.local_stride; ++lane) {
    std::memcpy(&memory[std::size_t{lane} * stride], &w.local[std::size_t{lane} * w.local_stride], w.local_stride);
    if (checked) std::memcpy(&init[std::size_t{lane} * stride], &w.local_init[std::size_t{lane} * w.local_stride], w.local_stride);
  }
  w.local.swap(memory);
  w.local_init.swap(init);
  w.local_stride = stride;
  return true;
}

// ---- what handlers call ------------------------------------------------------------------------------------------------

void Exec::split(u32 mask, u32 at) {
  Group g;
  g.frame = frame;
  g.pc = at;
  g.mask = mask;
  warp->groups.push_back(g);
  active &= ~mask;
  event |= regroup;
}

void Exec::split_waiting(u32 mask, u32 at, const Wait& what) {
  split(mask, at);
  waiting |= mask;
  warp->groups.back().wait = what;
}

void Exec::split_into(u32 mask, Frame* callee) {
  split(mask, 0);
  warp->groups.back().frame = callee;
}

void Exec::yield_point() {
  if (cluster->random(2)) event |= preempt;
}

// ---- agents ------------------------------------------------------------------------------------------------------------

u64 Cluster::add_agent(const Exec& x, const Op& op, u32 lane, std::function<bool(Agent&)> work) {
  agents.push_back({next_agent, x.site(op), x.warp, lane, false, std::move(work)});
  ++progress;
  return next_agent++;
}

bool Cluster::agents_done(const std::vector<u64>& ids, bool read_only) const {
  for (u64 id : ids)
    for (const Agent& a : agents)
      if (a.id == id && !(read_only && a.has_read)) return false;
  return true;
}

// ---- groups ------------------------------------------------------------------------------------------------------------

bool Cluster::ready(Warp& w, Group& g) {
  switch (g.wait.kind) {
    case Wait::none: return true;
    case Wait::warp_sync: {  // groups that have met count together: they merge only when the warp is next chosen
      u32 here = 0;
      for (const Group& o : w.groups)
        if (o.frame == g.frame && o.pc == g.pc && o.wait == g.wait) here |= o.mask;
      return (g.wait.id & w.alive & ~here) == 0;
    }
    case Wait::warp_barrier: {
      u32 here = 0;
      for (const Group& o : w.groups)
        if (o.wait.kind == Wait::warp_barrier && o.wait.id == g.wait.id) here |= o.mask;
      return (g.wait.id & w.alive & ~here) == 0;
    }
    case Wait::barrier: return w.cta->barriers[g.wait.id].generation != g.wait.phase;
    case Wait::cluster_barrier: return cluster_phase >= g.wait.phase;
    case Wait::mbarrier: return g.timed_out || mbarrier_ready(*this, g.wait);
    case Wait::cp_async:
    case Wait::bulk: return async_ready(*this, w, g.wait, g.mask);
    case Wait::wgmma: return w.cta->warpgroups[w.index / 4].done >= g.wait.phase;
    case Wait::registers: return w.cta->register_pool >= g.wait.id;
  }
  return true;
}

void Cluster::resume(Warp& w, Group& g) {
  if (g.wait.kind == Wait::warp_barrier) {
    const u32 id = g.wait.id;
    if (g.frame && launch->config->checks) sync_lanes(w, id & w.alive);
    for (Group& o : w.groups) {
      if (o.wait.kind != Wait::warp_barrier || o.wait.id != id) continue;
      o.wait = Wait{};
      o.resumed = true;
    }
    return;
  }
  g.resumed = g.wait.kind == Wait::barrier || g.wait.kind == Wait::mbarrier;
  g.wait = Wait{};
}

// Groups that have met go on as one.
void Cluster::merge(Warp& w) {
  auto& groups = w.groups;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    for (std::size_t j = groups.size() - 1; j > i; --j) {
      Group& a = groups[i];
      Group& b = groups[j];
      const bool mergeable = a.wait.kind == Wait::none || a.wait.kind == Wait::warp_sync;
      if (a.frame != b.frame || a.pc != b.pc || !mergeable || !(a.wait == b.wait) || a.resumed != b.resumed) continue;
      a.mask |= b.mask;
      a.yielded = a.yielded && b.yielded;
      groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(j));
    }
  }
}

// Deepest call first, then smallest pc: both make diverged lanes meet again. A group that has spun comes after the others.
u32 Cluster::choose_group(Warp& w) {
  merge(w);
  u32 best = kNone;
  bool any_yielded = false;
  for (u32 pass = 0; pass < 2 && best == kNone; ++pass) {
    for (u32 i = 0; i < w.groups.size(); ++i) {
      Group& g = w.groups[i];
      if (!ready(w, g)) continue;
      if (g.yielded && pass == 0) {
        any_yielded = true;
        continue;
      }
      if (best == kNone) {
        best = i;
        continue;
      }
      const Group& b = w.groups[best];
      if (g.frame->depth != b.frame->depth ? g.frame->depth > b.frame->depth : g.pc < b.pc) best = i;
    }
    if (pass == 0 && best == kNone && !any_yielded) return kNone;
    if (pass == 0 && best == kNone)
      for (Group& g : w.groups) g.yielded = false;
  }
  return best;
}

// Records an instruction that took effect for some lanes, or for none because of its guard.
static void record(Exec& x, const Op& op, const Cta& cta, const Warp& w, u32 function, u32 mask, u64 wavefronts) {
  if (mask && !(mask & ~x.waiting)) return x.trace->drop();
  TraceEvent e;
  e.cta = cta.linear;
  e.warp = w.index;
  e.function = function;
  e.instr = op.instr;
  e.lanes = static_cast<u32>(std::popcount(mask & ~x.waiting));
  e.wavefronts = static_cast<u32>(wavefronts);
  x.trace->commit(e);
}

template <bool counting, bool tracing = false>
static u64 execute(Exec& x, u64 quantum, InstrCount* counts) {
  const Op* code = x.frame->fn->ops.data();
  u64 left = quantum;
  while (left) {
    --left;
    const Op& op = code[x.pc++];
    const u32 mask = x.active & (x.preds[op.guard >> 1] ^ (0u - (op.guard & 1)));
    if constexpr (counting) {
      x.count = &counts[op.instr];
      if (mask && !op.helper && !x.resumed) {
        const u32 lanes = static_cast<u32>(std::popcount(mask));
        x.count->issues += 1;
        x.count->lanes += lanes;
        x.count->flops += u64{op.flops} * lanes;
      }
    }
    if constexpr (tracing) {
      x.waiting = 0;
      const u64 before = x.count->shared_wavefronts;
      const u32 function = x.frame->fn->function->index;
      if (mask) op.fn(x, op, mask);
      if (!op.helper) record(x, op, *x.cta, *x.warp, function, mask, x.count->shared_wavefronts - before);
    } else {
      if (mask) op.fn(x, op, mask);
    }
    x.resumed = false;
    if (x.event || x.pc >= x.stop_pc) break;
  }
  return quantum - left;
}

u64 Cluster::run_group(Exec& x, u64 quantum) {
  if (!x.counting) return execute<false>(x, quantum, nullptr);
  InstrCount* const first = (*counts).data() + x.frame->fn->first_counter;
  if (x.trace && x.trace->records(linear)) return execute<true, true>(x, quantum, first);
  const u64 ran = execute<true>(x, quantum, first);
  if (x.trace) x.trace->drop();  // notes that no event wanted
  return ran;
}

void Cluster::run_warp(Warp& w) {
  Exec x;
  x.warp = &w;
  x.cta = w.cta;
  x.cluster = this;
  x.launch = launch;
  x.trace = launch->trace;
  x.checked = launch->config->checks != 0;
  x.counting = launch->config->counters;
  i64 turn = 64 + random(1024);
  while (turn > 0 && w.alive && !stopped) {
    const u32 index = choose_group(w);
    if (index == kNone) return;
    Group& chosen = w.groups[index];
    if (chosen.wait.kind != Wait::none) resume(w, chosen);
    Group g = chosen;
    chosen.resumed = chosen.timed_out = false;
    x.frame = g.frame;
    x.rows[0] = g.frame->rows;
    x.rows[1] = g.frame->fn->constants;
    x.preds = g.frame->preds.data();
    x.pc = g.pc;
    x.active = g.mask;
    x.resumed = g.resumed;
    x.timed_out = g.timed_out;
    x.event = 0;
    x.stop_pc = kNone;
    for (const Group& o : w.groups)
      if (&o != &chosen && o.frame == g.frame && o.pc > g.pc) x.stop_pc = std::min(x.stop_pc, o.pc);
    const bool alone = w.groups.size() == 1;
    const u64 quantum = alone ? static_cast<u64>(turn) : std::min<u64>(static_cast<u64>(turn), 256);
    const u64 ran = run_group(x, quantum);
    executed += ran;
    w.executed += ran;
    turn -= static_cast<i64>(ran);
    Group& back = w.groups[index];
    back.frame = x.frame;
    back.pc = x.pc;
    back.mask = x.active;
    back.wait = Wait{};
    if (!alone && (ran == quantum || (x.event & Exec::spin))) back.yielded = true;
    if (!x.active) w.groups.erase(w.groups.begin() + index);
    if (executed > launch->budget) {
      const Op& op = x.frame && w.alive ? x.frame->fn->ops[std::min<std::size_t>(x.pc, x.frame->fn->ops.size() - 1)] : launch->linked->functions[launch->linked->kernel].ops[0];
      if (w.alive) x.report(Check::budget, op, 0, "more than " + std::to_string(launch->budget) + " warp instructions in one CTA or cluster: an endless loop?");
      stopped = true;
    }
    if (x.event & (Exec::preempt | Exec::stop)) return;
  }
}

// ---- warps -------------------------------------------------------------------------------------------------------------

void Cluster::start() {
  const LaunchConfig& c = *launch->config;
  const LinkedFunction& kernel = launch->linked->functions[launch->linked->kernel];
  const u64 threads = c.block.count();
  const u32 warps_per_cta = static_cast<u32>((threads + kLanes - 1) / kLanes);
  const bool checked = c.checks != 0;
  for (Cta& cta : ctas) {
    cta.cluster = this;
    const u32 bytes = launch->linked->dynamic_base + c.dynamic_shared - kSharedBase;
    cta.shared.data.resize(align_up(bytes, 16));
    for (std::size_t i = 0; i + 4 <= cta.shared.data.size(); i += 4) std::memcpy(&cta.shared.data[i], &kPoison, 4);
    cta.shared.data.resize(bytes);
    if (checked) {
      cta.shared.init.resize(bytes);
      cta.shared.cells.resize(bytes / 4 + 1);
    }
    cta.warps = std::vector<Warp>(warps_per_cta);
    for (u32 i = 0; i < warps_per_cta; ++i) {
      Warp& w = cta.warps[i];
      w.cta = &cta;
      w.index = i;
      w.id = static_cast<u32>(warps.size());
      w.registers = launch->registers;
      const u64 rest = threads - u64{i} * kLanes;
      w.alive = rest >= kLanes ? kFullMask : (1u << rest) - 1;
      grow_local(w, kernel.function->frame_bytes, checked);
      Group g;
      g.frame = push_frame(w, &kernel, w.alive, nullptr, 0);
      g.mask = w.alive;
      w.groups.push_back(g);
      warps.push_back(&w);
    }
  }
  for (Warp* w : warps) {
    w->order.clock.seen.assign(warps.size(), 0);
    components.push_back({Component::warp});
  }
  choose_policy();
}

}  // namespace tkpy::emulator
