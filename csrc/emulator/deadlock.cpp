// The report of a deadlock: where every group of lanes stands and what it waits for, the state of everything that can be
// waited for, and who has arrived at it before and could again.
#include <bit>

#include "exec.h"
#include "tensor/mbarrier.h"

namespace tkpy::emulator {

namespace {

constexpr u32 kMostLines = 64;

std::string place(const Site& s) {
  return "PTX line " + std::to_string(s.ptx_line) + (s.source_line ? " (" + s.file + ":" + std::to_string(s.source_line) + ")" : "") +
         " `" + s.text + "`";
}

std::string warp_name(const Warp& w) { return "CTA " + std::to_string(w.cta->linear) + " warp " + std::to_string(w.index); }

}  // namespace

std::string Cluster::describe_wait(const Warp& w, const Group& g) const {
  switch (g.wait.kind) {
    case Wait::warp_sync:
    case Wait::warp_barrier: {
      char text[160];
      std::snprintf(text, sizeof text, "a warp-level synchronisation of lanes 0x%08x; only 0x%08x are here, 0x%08x live",
                    g.wait.id, g.mask, w.alive);
      return text;
    }
    case Wait::barrier: return "barrier " + std::to_string(g.wait.id);
    case Wait::cluster_barrier: {
      u32 live = 0;
      for (const Warp* o : warps) live += static_cast<u32>(std::popcount(o->alive));
      return "barrier.cluster: " + std::to_string(cluster_arrived) + " of " + std::to_string(live) + " living threads have arrived";
    }
    case Wait::mbarrier:
      return "the mbarrier at shared address " + std::to_string(static_cast<u32>(g.wait.address)) + " of CTA rank " +
             std::to_string(g.wait.address >> 32) + (g.wait.id ? ", for the end of the phase of parity " + std::to_string(g.wait.phase) : "");
    case Wait::cp_async: return "cp.async groups";
    case Wait::bulk: return "bulk groups";
    case Wait::wgmma: return "wgmma groups: not all four warps of the warpgroup have issued them";
    case Wait::registers: return std::to_string(g.wait.id) + " more registers a thread from the pool of its CTA";
    default: return "nothing";
  }
}

std::string Cluster::describe_barriers(const Cta& cta) const {
  std::string text;
  for (std::size_t id = 0; id < cta.barriers.size(); ++id) {
    const Barrier& b = cta.barriers[id];
    if (!b.arrived) continue;
    u32 live = 0;
    for (const Warp& w : cta.warps) live += w.alive != 0;
    text += "\n  CTA " + std::to_string(cta.linear) + " barrier " + std::to_string(id) + ": " + std::to_string(b.arrived) +
            " warps have arrived of " + std::to_string(b.expected ? b.expected / kLanes : live) + (b.expected ? "" : " that live");
  }
  return text;
}

std::string Cluster::describe_mbarriers(const Cta& cta) const {
  const std::map<u32, const MbarrierOrder*> sorted = [&] {
    std::map<u32, const MbarrierOrder*> all;
    for (const auto& [offset, m] : cta.mbarriers) all[offset] = &m;
    return all;
  }();
  std::string text;
  u32 shown = 0;
  for (const auto& [offset, m] : sorted) {
    if (++shown > kMostLines) break;
    u64 object = 0;
    std::memcpy(&object, cta.shared.data.data() + (offset - kSharedBase), 8);
    text += "\n  CTA " + std::to_string(cta.linear) + " mbarrier at shared address " + std::to_string(offset) + ": " +
            tensor::mbarrier_describe(object);
    std::string now, missing;
    for (const auto& [id, a] : m->arrivals) {
      const Warp& w = *warps[id];
      if (a.now) now += (now.empty() ? "" : ", ") + warp_name(w) + " (" + std::to_string(a.now) + ")";
      else if (w.alive) missing += (missing.empty() ? "" : ", ") + warp_name(w) + " at PTX line " + std::to_string(make_site(*launch, a.site, 0, 0, 0).ptx_line);
    }
    if (!now.empty()) text += "; arrived in this phase: " + now;
    if (!missing.empty()) text += "; arrived in an earlier phase only: " + missing;
    if (now.empty() && missing.empty()) text += "; no warp that lives has ever arrived";
  }
  return text;
}

// The groups of a warp that stand at one place and wait for one thing: lanes wait for an mbarrier one by one.
std::vector<Group> Cluster::stuck_groups(const Warp& w) const {
  std::vector<Group> out;
  for (const Group& g : w.groups) {
    bool known = false;
    for (Group& o : out) {
      if (o.frame != g.frame || o.pc != g.pc || !(o.wait == g.wait)) continue;
      o.mask |= g.mask;
      known = true;
    }
    if (!known) out.push_back(g);
  }
  return out;
}

void Cluster::report_deadlock() {
  std::string text = "no warp can run:";
  Finding f;
  f.check = Check::deadlock;
  const Warp* starved = nullptr;  // waits for registers
  bool first = true, warp_level = false;
  u32 shown = 0, ended = 0;
  for (const Warp* w : warps) {
    ended += w->alive == 0;
    for (const Group& g : stuck_groups(*w)) {
      const u32 op = std::min<u32>(g.pc, static_cast<u32>(g.frame->fn->ops.size() - 1));
      const Site s = make_site(*launch, {g.frame->fn->function->index, op}, w->cta->linear, w->index,
                               static_cast<u32>(std::countr_zero(g.mask)));
      warp_level |= g.wait.kind == Wait::warp_sync || g.wait.kind == Wait::warp_barrier;
      if (!starved && g.wait.kind == Wait::registers) {
        starved = w;
        report_at(Check::setmaxnreg, {g.frame->fn->function->index, op}, *w, 0,
                  "waits for ever for " + describe_wait(*w, g) + ": " + describe_registers(*w->cta));
      }
      if (first) f.site = s;
      first = false;
      if (++shown > kMostLines) continue;
      char lanes[32] = "";
      if (g.mask != w->alive) std::snprintf(lanes, sizeof lanes, ", lanes 0x%08x,", g.mask);
      text += "\n  " + warp_name(*w) + lanes + " at " + place(s) + " waits for " + describe_wait(*w, g);
    }
  }
  if (shown > kMostLines) text += "\n  and " + std::to_string(shown - kMostLines) + " more";
  if (ended) text += "\n  " + std::to_string(ended) + " warps have ended";
  for (const Cta& cta : ctas) {
    text += describe_barriers(cta) + describe_mbarriers(cta);
    if (starved && starved->cta == &cta) text += "\n  " + describe_registers(cta);
  }
  for (const Agent& a : agents)
    text += "\n  under way, and waiting itself: " + place(make_site(*launch, a.site, a.warp->cta->linear, a.warp->index, a.lane));
  f.message = text;
  if (warp_level && (launch->config->checks >> static_cast<u32>(Check::barrier_divergence) & 1)) {
    Finding d = f;
    d.check = Check::barrier_divergence;
    d.message = "lanes of one warp wait at different places for each other: a synchronising instruction was not reached by every "
                "lane it names";
    add_finding(std::move(d), "divergence");
  }
  add_finding(std::move(f), "deadlock");
  stopped = true;
}

}  // namespace tkpy::emulator
