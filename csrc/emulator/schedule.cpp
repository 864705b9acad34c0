// Which warp is next, and when asynchronous work lands. A seeded generator decides, so a seed names a schedule, whatever the
// number of host threads.
//
// Fair schedules hide errors: a slot released too early is still read in time, a copy nobody waits for has landed. So a seed
// also draws a policy. Warps take turns alike, or one warp, warpgroup or CTA is starved for as long as anything else can
// run, or rushed, or all are ranked and now and then change rank. Copies land soon, or late, or when nothing else can happen;
// in any order, the newest or the oldest first; and one in so many is held back longest. wgmma runs in order, soon or late.
#include <algorithm>
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

u32 Cluster::random(u32 below) {  // splitmix64
  rng += 0x9e3779b97f4a7c15ull;
  u64 z = rng;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<u32>((z >> 32) * below >> 32);
}

void Cluster::choose_policy() {
  const u32 n = static_cast<u32>(warps.size());
  policy_.turns = static_cast<Policy::Turns>(random(4));
  static constexpr u32 kCopies[] = {1, 2, 2, 12, 12, 0}, kWgmma[] = {1, 2, 12, 12, 0, 0};
  policy_.copies = kCopies[random(6)];
  policy_.wgmma = kWgmma[random(6)];
  policy_.order = static_cast<Policy::Order>(random(3));
  if (random(4) == 0) policy_.hold_every = 1 + random(6), policy_.held = random(policy_.hold_every);
  static constexpr u32 kEarly[] = {0, 8, 2};
  policy_.early_return = kEarly[random(3)];
  const Warp& one = *warps[random(n)];
  std::vector<u32> sizes{1};  // of what is starved or rushed, in warps: one warp, a warpgroup, a CTA; never all there are
  const u32 in_cta = static_cast<u32>(one.cta->warps.size());
  if (in_cta > 4) sizes.push_back(4);
  if (ctas.size() > 1 && in_cta > 1) sizes.push_back(in_cta);
  const u32 size = sizes[random(static_cast<u32>(sizes.size()))];
  for (const Warp* w : warps) {
    policy_.chosen.push_back(w->cta == one.cta && w->index / size == one.index / size);
    policy_.rank.push_back(random(1u << 30));
  }
}

bool Cluster::come_back_early() { return policy_.early_return && random(policy_.early_return) == 0; }

// ---- warps -------------------------------------------------------------------------------------------------------------

bool Cluster::runnable(Warp& w) {
  if (!w.alive) return false;
  for (Group& g : w.groups)
    if (ready(w, g)) return true;
  return false;
}

Warp* Cluster::pick() {
  const u32 n = static_cast<u32>(warps.size());
  // Warps that spin on memory can run for ever without the one that is held back: policies end where nothing moves, and
  // have an exception now and then.
  idle_turns_ = progress == turn_progress_ ? idle_turns_ + 1 : 0;
  turn_progress_ = progress;
  const bool fair = policy_.turns == Policy::alike || idle_turns_ > 64 || random(256) == 0;
  if (!fair && policy_.turns == Policy::ranked && random(32) == 0) policy_.rank[random(n)] = random(1u << 30);
  const u32 first = random(n);
  Warp* best = nullptr;
  u32 best_rank = 0;
  for (u32 i = 0; i < n; ++i) {
    const u32 at = (first + i) % n;
    u32 rank = 1;
    if (!fair) {
      if (policy_.turns == Policy::ranked) rank += policy_.rank[at];
      else rank += (policy_.chosen[at] != 0) == (policy_.turns == Policy::rushed);
    }
    if (rank <= best_rank || !runnable(*warps[at])) continue;
    best = warps[at];
    best_rank = rank;
    if (fair) break;
  }
  return best;
}

bool Cluster::step() {
  if (stopped) return false;
  if (policy_.copies && !agents.empty() && random(policy_.copies) == 0) run_agent(false);
  if (policy_.wgmma && random(policy_.wgmma) == 0) run_wgmma(*this);
  // A warp that tests again and again what a copy completes can always run: after a while the copy lands all the same.
  if (idle_turns_ > 64 && random(4) == 0 && !run_async(false)) run_async(true);
  if (stopped) return false;
  if (Warp* w = pick()) {
    run_warp(*w);
    return !stopped;
  }
  if (run_async(false) || run_async(true)) return !stopped;
  if (stopped || std::none_of(warps.begin(), warps.end(), [](const Warp* w) { return w->alive != 0; })) return false;
  if (wake_timeouts()) return true;
  report_deadlock();
  return false;
}

// Nothing can run. A try_wait may time out and let its thread look at something else; if that has happened several times
// over without any progress, nothing ever will.
bool Cluster::wake_timeouts() {
  if (progress != stalled_progress_) {
    stalled_progress_ = progress;
    timeouts_ = 0;
  }
  if (++timeouts_ > 8) return false;
  bool any = false;
  for (Warp* w : warps) {
    for (Group& g : w->groups) {
      if (g.wait.kind != Wait::mbarrier) continue;
      g.timed_out = true;
      any = true;
    }
  }
  return any;
}

// ---- asynchronous work -------------------------------------------------------------------------------------------------

bool Cluster::run_async(bool also_held) {
  if (random(2)) return run_wgmma(*this) || run_agent(also_held);
  return run_agent(also_held) || run_wgmma(*this);
}

bool Cluster::run_agent(bool also_held) {
  const std::size_t n = agents.size();
  const std::size_t first = n ? random(static_cast<u32>(n)) : 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t at = policy_.order == Policy::any ? (first + i) % n : policy_.order == Policy::newest ? n - 1 - i : i;
    const bool held = policy_.hold_every && agents[at].id % policy_.hold_every == policy_.held;
    if ((also_held || !held) && step_agent(at)) return true;
  }
  return false;
}

// False: this one waits for something itself.
bool Cluster::step_agent(std::size_t at) {
  const bool had_read = agents[at].has_read;
  Agent agent = std::move(agents[at]);  // the step may add agents
  agents[at].step = nullptr;
  const bool done = agent.step(agent);
  const bool moved = done || agent.has_read != had_read;
  if (done) agents.erase(agents.begin() + static_cast<std::ptrdiff_t>(at));
  else agents[at] = std::move(agent);
  progress += moved;
  return moved;
}

}  // namespace tkpy::emulator
