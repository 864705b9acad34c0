// CTA and cluster barriers (PTX ISA 9.7.13.1, 9.7.13.2). A barrier counts warps: an arriving warp counts as 32 threads.
#include <algorithm>
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

namespace {

u32 live_warps(const Cta& cta) {
  return static_cast<u32>(std::count_if(cta.warps.begin(), cta.warps.end(), [](const Warp& w) { return w.alive != 0; }));
}

// Threads that have exited no longer take part in a barrier without a count.
bool complete(Cta& cta, Barrier& b) {
  const u32 needed = b.expected ? b.expected / kLanes : live_warps(cta);
  if (b.arrived == 0 || b.arrived < needed) return false;
  b.done_clock = std::move(b.clock);
  b.clock = Clock{};
  b.done_popc = b.popc, b.done_all = b.all, b.done_any = b.any;
  b.popc = 0, b.all = 1, b.any = 0;
  b.arrived = 0;
  b.expected = 0;
  ++b.generation;
  ++cta.cluster->progress;
  return true;
}

// The second half of a barrier: what the waiting warp learns.
void leave(Exec& x, const Op& op, u32 mask, Barrier& b) {
  Warp& w = *x.warp;
  if (x.checked) {
    observe(w, w.alive, b.done_clock);
    sync_lanes(w, w.alive);
  }
  if (op.a != 2) return;
  if (op.b == 0) {
    u32* d = x.row<u32>(op.d[0]);
    for (u32 rest = mask; rest; rest &= rest - 1) d[std::countr_zero(rest)] = b.done_popc;
  } else if (op.d[0] != kNone) {
    const bool t = op.b == 1 ? b.done_all : b.done_any;
    x.preds[op.d[0]] = (x.preds[op.d[0]] & ~mask) | (t ? mask : 0);
  }
}

bool check_count(Exec& x, const Op& op, u32 lane, const Barrier& b, u32 id, u32 count) {
  const u64 threads = align_up(x.launch->config->block.count(), kLanes);
  std::string problem;
  if (count % kLanes) problem = "a thread count of " + std::to_string(count) + ", which is not a multiple of 32";
  else if (count > threads) problem = "a thread count of " + std::to_string(count) + ", but the CTA has " + std::to_string(threads);
  else if (b.arrived && b.expected != count)
    problem = "a thread count of " + std::to_string(count) + ", but warps already waiting expect " +
              (b.expected ? std::to_string(b.expected) : "all threads");
  if (problem.empty()) return true;
  x.report(Check::barrier_count, op, lane, "barrier " + std::to_string(id) + " with " + problem);
  return false;
}

}  // namespace

void exec_barrier(Exec& x, const Op& op, u32 mask) {
  const u32 lane = static_cast<u32>(std::countr_zero(mask));
  const u32 id = x.row<u32>(op.s[0])[lane];
  if (id >= 16) {
    x.report(Check::invalid_instruction, op, lane, "barrier number " + std::to_string(id) + ": there are 16");
    return;
  }
  Barrier& b = x.cta->barriers[id];
  if (x.trace) x.trace->note({id, op.c ? x.row<u32>(op.s[1])[lane] : 0});
  if (x.resumed) return leave(x, op, mask, b);
  if (!converge(x, op, mask, x.warp->alive)) return;
  const u32 count = op.c ? x.row<u32>(op.s[1])[lane] : 0;
  check_count(x, op, lane, b, id, count);
  Warp& w = *x.warp;
  b.expected = b.arrived ? b.expected : count / kLanes * kLanes;
  ++b.arrived;
  if (x.checked) publish(w, w.alive, b.clock);
  if (op.a == 2) {
    const u32 yes = x.pred(op.s[2]) & mask;
    b.popc += static_cast<u32>(std::popcount(yes));
    b.all &= yes == mask;
    b.any |= yes != 0;
  }
  const u64 generation = b.generation;
  const bool done = complete(*x.cta, b);
  x.yield_point();
  if (op.a == 1) return;
  if (done) return leave(x, op, mask, b);
  Wait wait;
  wait.kind = Wait::barrier;
  wait.id = id;
  wait.phase = generation;
  x.split_waiting(mask, x.pc - 1, wait);
}

void retry_barriers(Cta& cta) {
  for (Barrier& b : cta.barriers)
    if (b.arrived && !b.expected) complete(cta, b);
  retry_cluster_barrier(*cta.cluster);
}

namespace {

u32 expected_arrivals(const Cluster& c) {
  u32 n = 0;
  for (const Warp* w : c.warps) n += static_cast<u32>(std::popcount(w->alive));
  return n;
}

}  // namespace

void retry_cluster_barrier(Cluster& c) {
  if (c.cluster_arrived == 0 || c.cluster_arrived < expected_arrivals(c)) return;
  c.cluster_done_clock = std::move(c.cluster_clock);
  c.cluster_clock = Clock{};
  c.cluster_arrived = 0;
  ++c.cluster_phase;
  ++c.progress;
}

// barrier.cluster counts threads: all threads of the cluster that have not exited.
void exec_cluster_arrive(Exec& x, const Op& op, u32 mask) {
  Cluster& c = *x.cluster;
  Warp& w = *x.warp;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    if (w.cluster_arrivals[lane])
      x.report(Check::barrier_count, op, lane, "barrier.cluster.arrive twice without a wait between");
    w.cluster_arrivals[lane] = c.cluster_phase + 1;
  }
  c.cluster_arrived += static_cast<u32>(std::popcount(mask));
  // .relaxed publishes only what a fence has published.
  if (x.checked && op.a) publish_fenced(w, mask, false, c.cluster_clock);
  else if (x.checked) publish(w, mask, c.cluster_clock);
  retry_cluster_barrier(c);
  x.yield_point();
}

void exec_cluster_wait(Exec& x, const Op& op, u32 mask) {
  Cluster& c = *x.cluster;
  Warp& w = *x.warp;
  const u32 lane = static_cast<u32>(std::countr_zero(mask));
  const u64 mine = w.cluster_arrivals[lane];
  if (mine == 0) {
    x.report(Check::barrier_count, op, lane, "barrier.cluster.wait without an arrive before it");
    return;
  }
  if (c.cluster_phase >= mine) {
    if (x.checked) observe(w, mask, c.cluster_done_clock);  // lanes of one warp too: in order by what they released on arrival
    for (u32 rest = mask; rest; rest &= rest - 1) w.cluster_arrivals[static_cast<u32>(std::countr_zero(rest))] = 0;
    return;
  }
  Wait wait;
  wait.kind = Wait::cluster_barrier;
  wait.phase = mine;
  x.split_waiting(mask, x.pc - 1, wait);
}

}  // namespace tkpy::emulator
