#include "order.h"

#include <algorithm>
#include <bit>

#include "machine.h"

namespace tkpy::emulator {

namespace {

void join(Times& into, const Times& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

void join(Abroad& into, const Abroad& from) { join(into.seen, from.seen), join(into.fenced, from.fenced); }

// A proxy fence shows what is seen.
void show(Clock& c, Times Clock::*fenced, const Clock& seen) {
  join(c.*fenced, seen.seen);
  if (fenced != &Clock::fenced_global) return;
  for (const auto& [cluster, abroad] : seen.others) join(c.others[cluster].fenced, abroad.seen);
}

bool below(const Times& a, const Times& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i] > (i < b.size() ? b[i] : 0)) return false;
  return true;
}

void meet(Times& into, const Times& from) {
  into.resize(std::min(into.size(), from.size()));
  for (std::size_t i = 0; i < into.size(); ++i) into[i] = std::min(into[i], from[i]);
}

// Times of this warp that come before what any of its lanes does now.
u32 synced(const WarpOrder& o, u32 lanes) {
  u32 least = ~u32{0};
  for (u32 rest = lanes; rest; rest &= rest - 1) least = std::min(least, o.lanes.sync[std::countr_zero(rest)]);
  return least ? least - 1 : 0;
}

u32 component_of(Warp& w, u32 lane) {
  u16& c = w.order.lane_component[lane];
  if (!c) {
    Cluster& cluster = *w.cta->cluster;
    c = new_component(cluster, Component::lane);
    if (cluster.launch->across) cluster.launch->lane_components[lane_key(cluster.linear, w.id, lane)] = c;
  }
  return c;
}

bool is_whole(const Warp& w, u32 mask) { return (w.alive & ~mask) == 0; }

Clock& own_clock(WarpOrder& o, u32 lane) {
  if (!o.apart[lane]) o.apart[lane] = std::make_unique<Clock>();
  o.apart_lanes |= 1u << lane;
  return *o.apart[lane];
}

// Adds what of its own warp comes before what `lanes` do now: what they do, and what the lanes that they have met did before.
void raise_own(Warp& w, u32 lanes, Times& into) {
  WarpOrder& o = w.order;
  const u32 all = synced(o, w.alive);
  raise(into, w.id, all);
  for (u32 rest = lanes; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    raise(into, component_of(w, lane), o.now);
    if (!o.lanes.split) continue;
    const auto& seen = o.lanes.split->sync[lane];
    for (u32 other = 0; other < kLanes; ++other)
      if (seen[other] > all + 1) raise(into, component_of(w, other), seen[other] - 1);
  }
}

LaneTimes::Split& split_of(WarpOrder& o) {
  auto& split = o.lanes.split;
  if (!split) {
    split = std::make_shared<LaneTimes::Split>();
    split->sync.fill(o.lanes.sync), split->met.fill(o.lanes.met);
  } else if (split.use_count() > 1) {
    split = std::make_shared<LaneTimes::Split>(*split);
  }
  return *split;
}

// Some lanes of a warp meet: each of them has seen what any of them has, and all that they did before.
void meet(std::array<std::array<u32, kLanes>, kLanes>& times, u32 lanes, u32 now) {
  std::array<u32, kLanes> together{};
  for (u32 rest = lanes; rest; rest &= rest - 1) {
    const auto& of = times[std::countr_zero(rest)];
    for (u32 other = 0; other < kLanes; ++other) together[other] = std::max(together[other], of[other]);
  }
  for (u32 lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1) together[lane] = now;
  for (u32 rest = lanes; rest; rest &= rest - 1) times[std::countr_zero(rest)] = together;
}

// All lanes that are alive have met. Of those that have exited they share what some had seen.
void unsplit(WarpOrder& o, u32 lanes) {
  for (u32 rest = lanes; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    for (u32 gone = 0; gone < kLanes; ++gone) {
      if (lanes >> gone & 1) continue;
      o.lanes.sync[gone] = std::max(o.lanes.sync[gone], o.lanes.split->sync[lane][gone]);
      o.lanes.met[gone] = std::max(o.lanes.met[gone], o.lanes.split->met[lane][gone]);
    }
  }
  o.lanes.split.reset();
}

void drop(WarpOrder& o, u32 lanes) {
  for (u32 rest = lanes & o.apart_lanes; rest; rest &= rest - 1) o.apart[std::countr_zero(rest)].reset();
  o.apart_lanes &= ~lanes;
}

// What every lane has seen on its own belongs to all.
void fold(Warp& w) {
  WarpOrder& o = w.order;
  if (!w.alive || (w.alive & ~o.apart_lanes)) return;
  Clock common = *o.apart[std::countr_zero(w.alive)];
  common.others.clear();  // stays apart until the lanes meet
  for (u32 rest = w.alive; rest; rest &= rest - 1) {
    const Clock& lane = *o.apart[std::countr_zero(rest)];
    meet(common.seen, lane.seen), meet(common.fenced, lane.fenced), meet(common.fenced_global, lane.fenced_global);
    meet(common.fenced_maps, lane.fenced_maps);
  }
  join(o.clock, common);
  for (u32 rest = o.apart_lanes; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const Clock& c = *o.apart[lane];
    if (c.others.empty() && below(c.seen, o.clock.seen) && below(c.fenced, o.clock.fenced) && below(c.fenced_global, o.clock.fenced_global) &&
        below(c.fenced_maps, o.clock.fenced_maps))
      drop(o, 1u << lane);
  }
}

}  // namespace

void raise(Times& t, u32 component, u32 time) {
  if (t.size() <= component) t.resize(component + 1);
  t[component] = std::max(t[component], time);
}

void join(Clock& into, const Clock& from) {
  join(into.seen, from.seen);
  join(into.fenced, from.fenced);
  join(into.fenced_global, from.fenced_global);
  join(into.fenced_maps, from.fenced_maps);
  for (const auto& [cluster, abroad] : from.others) join(into.others[cluster], abroad);
}

void publish_abroad(u32 cluster, const Clock& from, Clock& into) {
  for (const auto& [other, abroad] : from.others) join(into.others[other], abroad);
  join(into.others[cluster], Abroad{from.seen, from.fenced_global});
}

Clock from_abroad(u32 cluster, const Clock& from) {
  Clock c = from;
  if (const auto own = c.others.find(cluster); own != c.others.end()) {
    c.seen = std::move(own->second.seen);
    c.fenced_global = std::move(own->second.fenced);
    c.others.erase(own);
  }
  return c;
}

u16 new_component(Cluster& c, Component::Kind kind, u32 count) {
  constexpr std::size_t kMost = 0xfff0;
  if (c.components.size() + count <= kMost) c.components.insert(c.components.end(), count, {kind});
  return static_cast<u16>(c.components.size() - count);
}

void publish(Warp& w, u32 mask, Clock& into) {
  WarpOrder& o = w.order;
  join(into, o.clock);
  for (u32 rest = mask & o.apart_lanes; rest; rest &= rest - 1) join(into, *o.apart[std::countr_zero(rest)]);
  if (is_whole(w, mask)) {
    raise(into.seen, w.id, o.now);
    if (o.copies_done) raise(into.seen, o.copy_component, o.copies_done);
  } else {
    raise_own(w, mask, into.seen);
  }
  ++o.now;
}

void publish_each(Warp& w, Clock& into) {
  WarpOrder& o = w.order;
  join(into, o.clock);
  raise(into.seen, w.id, synced(o, w.alive));
  ++o.now;
}

void retire(const Warp& w, u32 mask, Clock& into) {
  join(into, w.order.clock);
  raise(into.seen, w.id, w.order.now);
  for (u32 rest = mask & w.order.apart_lanes; rest; rest &= rest - 1) join(into, *w.order.apart[std::countr_zero(rest)]);
}

void observe(Warp& w, u32 mask, const Clock& from) {
  if (from.empty()) return;
  if (is_whole(w, mask)) return join(w.order.clock, from);
  for (u32 rest = mask; rest; rest &= rest - 1) join(own_clock(w.order, static_cast<u32>(std::countr_zero(rest))), from);
  fold(w);
}

void observe(Warp& w, u32 mask, u32 component, u32 time) {
  if (is_whole(w, mask)) return raise(w.order.clock.seen, component, time);
  for (u32 rest = mask; rest; rest &= rest - 1)
    raise(own_clock(w.order, static_cast<u32>(std::countr_zero(rest))).seen, component, time);
  fold(w);
}

void sync_lanes(Warp& w, u32 lanes) {
  WarpOrder& o = w.order;
  const u32 now = ++o.now;
  const bool whole = is_whole(w, lanes);
  if (whole) {
    if (o.lanes.split) unsplit(o, lanes);
    for (u32 lane = 0; lane < kLanes; ++lane)
      if (lanes >> lane & 1) o.lanes.sync[lane] = o.lanes.met[lane] = now;
    if (o.copies_done) raise(o.clock.seen, o.copy_component, o.copies_done);
  } else {
    LaneTimes::Split& split = split_of(o);
    meet(split.sync, lanes, now), meet(split.met, lanes, now);
  }
  if (!(lanes & o.apart_lanes)) return;
  Clock together;
  for (u32 rest = lanes & o.apart_lanes; rest; rest &= rest - 1) join(together, *o.apart[std::countr_zero(rest)]);
  if (whole) {
    join(o.clock, together);
    drop(o, ~u32{0});
  } else {
    for (u32 rest = lanes; rest; rest &= rest - 1) own_clock(o, static_cast<u32>(std::countr_zero(rest))) = together;
  }
}

void exchange_lanes(Warp& w, u32 lanes) {
  WarpOrder& o = w.order;
  const u32 now = ++o.now;
  if (!is_whole(w, lanes)) return meet(split_of(o).met, lanes, now);
  for (u32 lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1) o.lanes.met[lane] = now;
}

u32 issue_copies(Warp& w, u32 lanes) {
  WarpOrder& o = w.order;
  if (!o.copy_component) o.copy_component = new_component(*w.cta->cluster, Component::cp_async);
  o.copies.push_back({lanes, 0, 0, 0});
  return ++o.copies_issued;
}

void wait_for_copies(Warp& w, u32 number, u32 lanes) {
  WarpOrder& o = w.order;
  CopyWaits& copy = o.copies[number - 1];
  lanes &= ~copy.waited;
  if (!lanes) return;
  if (!copy.waited) copy.first = lanes, copy.time = o.now;
  else o.later_waits.insert({number, {lanes, o.now}});
  copy.waited |= lanes;
  while (o.copies_done < o.copies.size() && o.copies[o.copies_done].waited == o.copies[o.copies_done].issued) ++o.copies_done;
}

u16 lane_copies(Warp& w, u32 lane) {
  u16& c = w.order.lane_copy_component[lane];
  if (!c) {
    Cluster& cluster = *w.cta->cluster;
    c = new_component(cluster, Component::cp_async);
    if (cluster.launch->across) cluster.launch->lane_components[lane_key(cluster.linear, w.id, lane) | kCopiesOfLane] = c;
  }
  return c;
}

void observe_relaxed(Warp& w, u32 mask, const Clock& from) {
  if (!from.empty()) join(w.order.pending_acquire[mask], from);
}

void fence(Warp& w, u32 mask, bool gpu) {
  WarpOrder& o = w.order;
  std::map<u32, Clock> still;
  for (auto& [lanes, seen] : o.pending_acquire) {
    observe(w, lanes & mask & w.alive, seen);
    if (const u32 others = lanes & ~mask & w.alive) join(still[others], seen);
  }
  o.pending_acquire = std::move(still);
  if (!o.fences) o.fences = std::make_unique<LaneFences>();
  auto common = std::make_shared<Clock>(o.clock);
  raise(common->seen, w.id, synced(o, w.alive));
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    LaneFence f{o.now, o.copies_done, common, o.lanes.split};
    if (o.apart[lane]) {
      auto own = std::make_shared<Clock>(*common);
      join(*own, *o.apart[lane]);
      f.clock = std::move(own);
    }
    if (gpu) o.fences->gpu[lane] = f;
    o.fences->any[lane] = std::move(f);
  }
  o.fence_lanes |= mask;
  if (gpu) o.gpu_fence_lanes |= mask;
  ++o.now;
}

void publish_fenced(Warp& w, u32 mask, bool gpu, Clock& into) {
  WarpOrder& o = w.order;
  mask &= gpu ? o.gpu_fence_lanes : o.fence_lanes;
  if (!mask) return;
  const auto& fences = gpu ? o.fences->gpu : o.fences->any;
  u32 all = 0;  // a time of the warp that the fences of all its lanes come after
  if (is_whole(w, mask)) {
    u32 copies = ~u32{0};
    all = ~u32{0};
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const LaneFence& f = fences[std::countr_zero(rest)];
      all = std::min(all, f.time), copies = std::min(copies, f.copies);
    }
    raise(into.seen, w.id, all);
    if (copies) raise(into.seen, o.copy_component, copies);
  }
  const Clock* joined = nullptr;  // most lanes share one
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const LaneFence& f = fences[lane];
    if (f.clock.get() != joined) join(into, *f.clock);
    joined = f.clock.get();
    if (f.time > all) raise(into.seen, component_of(w, lane), f.time);
    for (u32 other = 0; f.split && other < kLanes; ++other)
      if (f.split->sync[lane][other] > all + 1) raise(into.seen, component_of(w, other), f.split->sync[lane][other] - 1);
  }
}

void proxy_fence(Warp& w, u32 mask, u32 spaces) {
  WarpOrder& o = w.order;
  const bool whole = is_whole(w, mask);
  auto show_all = [&](Times Clock::*fenced) {
    if (whole) {
      show(o.clock, fenced, o.clock);
      raise(o.clock.*fenced, w.id, o.now);
      if (o.copies_done) raise(o.clock.*fenced, o.copy_component, o.copies_done);
      for (u32 rest = o.apart_lanes; rest; rest &= rest - 1) {
        Clock& c = *o.apart[std::countr_zero(rest)];
        show(c, fenced, c);
      }
      return;
    }
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      Clock& c = own_clock(o, lane);
      show(c, fenced, o.clock);
      show(c, fenced, c);
      raise_own(w, 1u << lane, c.*fenced);
    }
  };
  if (spaces & kFenceShared) show_all(&Clock::fenced);
  if (spaces & kFenceGlobal) show_all(&Clock::fenced_global);
  if (spaces & kFenceMaps) show_all(&Clock::fenced_maps);
  ++o.now;
}

Accessor accessor(Cluster& c, const Warp& w, u32 lane, u32 site) {
  Accessor a;
  a.cluster = &c;
  a.warp = &w;
  a.warp_id = w.id;
  a.lane = lane;
  a.site = site;
  a.component = w.id;
  a.time = w.order.now;
  a.clock = &w.order.clock;
  a.apart = w.order.apart[lane].get();
  a.lanes = &w.order.lanes;
  return a;
}

Accessor Issue::as(u32 component, u32 time, bool async) const {
  Accessor a;
  a.cluster = cluster;
  a.warp = warp;
  a.warp_id = warp->id;
  a.lane = lane;
  a.site = site;
  a.component = component;
  a.time = time;
  a.clock = &start;
  a.agent = true;
  a.async = async;
  return a;
}

namespace {

// Whether the clocks of `a` have what a lane of a warp did at that time of the warp.
bool clocks_cover(const Accessor& a, Times Clock::*which, u32 warp, u32 lane_component, u32 time) {
  for (const Clock* c : {a.clock, a.apart})
    if (c && (covers(c->*which, warp, time) || (lane_component && covers(c->*which, lane_component, time)))) return true;
  return false;
}

// What a lane of the accessor's own warp did comes before the access once they have met: lanes of one warp are unordered
// until then (independent thread scheduling), and having been converged orders nothing.
bool has_met(const Accessor& a, u32 lane, u32 time, bool writes) {
  if (time > a.until) return false;
  const LaneTimes& t = *a.lanes;
  if (lane == a.lane || time < (writes ? t.sync : t.met)[lane]) return true;
  return t.split && time < (writes ? t.split->sync : t.split->met)[a.lane][lane];
}

bool comes_after_lane(const Accessor& a, Times Clock::*which, const Warp& issuer, u32 lane, u32 time, bool writes) {
  return (&issuer == a.warp && a.lanes && has_met(a, lane, time, writes)) ||
         clocks_cover(a, which, issuer.id, issuer.order.lane_component[lane], time);
}

u32 waited_at(const WarpOrder& o, u32 number, u32 lane) {  // 0: not yet
  const CopyWaits& copy = o.copies[number - 1];
  if (copy.first >> lane & 1) return copy.time;
  const auto [first, last] = o.later_waits.equal_range(number);
  for (auto later = first; later != last; ++later)
    if (later->second.lanes >> lane & 1) return later->second.time;
  return 0;
}

bool comes_after_copy(const Accessor& a, Times Clock::*which, const Warp& issuer, u32 lane, u32 number, bool writes) {
  const WarpOrder& o = issuer.order;
  const u32 waited = waited_at(o, number, lane);
  if (waited && comes_after_lane(a, which, issuer, lane, waited, writes)) return true;
  const u32 own = o.lane_copy_component[lane];
  return own && clocks_cover(a, which, own, 0, number);
}

// Whether an access comes after an earlier one; in `fenced`, also for the async proxy.
bool comes_after(const Accessor& a, Times Clock::*which, const Access& before, bool writes, u32 lanes) {
  const Warp& issuer = *a.cluster->warps[before.warp];
  const bool by_warp = before.component == issuer.id;
  if (clocks_cover(a, which, before.component, 0, before.time)) return true;
  const bool copies = !by_warp && before.component == issuer.order.copy_component;
  if (!before.several) lanes = 1u << before.lane;
  else if (copies && !lanes) lanes = issuer.order.copies[before.time - 1].issued;
  if ((!copies && !by_warp) || !lanes) return false;
  for (u32 rest = lanes; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    if (!(copies ? comes_after_copy(a, which, issuer, lane, before.time, writes) : comes_after_lane(a, which, issuer, lane, before.time, writes))) return false;
  }
  return true;
}

}  // namespace

bool released_to_maps(const Accessor& a, const Access& write) {
  return clocks_cover(a, &Clock::fenced_maps, write.component, a.cluster->warps[write.warp]->order.lane_component[write.lane], write.time);
}

Relation relate_in_full(const Accessor& a, const Access& before, bool before_writes, bool global, u32 lanes) {
  if (!comes_after(a, &Clock::seen, before, before_writes, lanes)) return Relation::unordered;
  if (!a.async || !before_writes || before.async) return Relation::ordered;
  // What cp.async wrote needs no proxy fence before wgmma, once it has been waited for: neither CUTLASS's multistage products
  // nor Triton's pipelined ones have one between cp.async.wait_group and wgmma, though 9.7.15.2 asks for it.
  const auto kind = [&](u32 component) { return a.cluster->components[component].kind; };
  if (kind(before.component) == Component::cp_async && kind(a.component) == Component::wgmma) return Relation::ordered;
  return comes_after(a, global ? &Clock::fenced_global : &Clock::fenced, before, true, lanes) ? Relation::ordered : Relation::unfenced;
}

}  // namespace tkpy::emulator
