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
  }
  join(o.clock, common);
  for (u32 rest = o.apart_lanes; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const Clock& c = *o.apart[lane];
    if (c.others.empty() && below(c.seen, o.clock.seen) && below(c.fenced, o.clock.fenced) && below(c.fenced_global, o.clock.fenced_global))
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
  for (const auto& [cluster, seen] : from.others) join(into.others[cluster], seen);
}

void publish_abroad(u32 cluster, const Clock& from, Clock& into) {
  for (const auto& [other, seen] : from.others) join(into.others[other], seen);
  join(into.others[cluster], from.seen);
}

Clock from_abroad(u32 cluster, const Clock& from) {
  Clock c = from;
  if (const auto own = c.others.find(cluster); own != c.others.end()) {
    c.seen = std::move(own->second);
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
  } else {
    raise(into.seen, w.id, synced(o, w.alive));
    for (u32 rest = mask; rest; rest &= rest - 1) raise(into.seen, component_of(w, static_cast<u32>(std::countr_zero(rest))), o.now);
  }
  ++o.now;
}

void publish_each(Warp& w, u32 mask, Clock& into) {
  WarpOrder& o = w.order;
  join(into, o.clock);
  for (u32 rest = mask & o.apart_lanes; rest; rest &= rest - 1) join(into, *o.apart[std::countr_zero(rest)]);
  raise(into.seen, w.id, synced(o, w.alive));
  ++o.now;
}

void retire(const Warp& w, u32 mask, Clock& into) {
  join(into, w.order.clock);
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
  for (u32 lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1) o.lanes.sync[lane] = o.lanes.met[lane] = now;
  if (!(lanes & o.apart_lanes)) return;
  Clock together;
  for (u32 rest = lanes & o.apart_lanes; rest; rest &= rest - 1) join(together, *o.apart[std::countr_zero(rest)]);
  if (is_whole(w, lanes)) {
    join(o.clock, together);
    drop(o, ~u32{0});
  } else {
    for (u32 rest = lanes; rest; rest &= rest - 1) own_clock(o, static_cast<u32>(std::countr_zero(rest))) = together;
  }
}

void exchange_lanes(Warp& w, u32 lanes) {
  const u32 now = ++w.order.now;
  for (u32 lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1) w.order.lanes.met[lane] = now;
}

void proxy_fence(Warp& w, u32 mask, u32 spaces) {
  WarpOrder& o = w.order;
  const bool whole = is_whole(w, mask);
  auto fence = [&](Times Clock::*fenced) {
    if (whole) {
      join(o.clock.*fenced, o.clock.seen);
      raise(o.clock.*fenced, w.id, o.now);
      for (u32 rest = o.apart_lanes; rest; rest &= rest - 1) {
        Clock& c = *o.apart[std::countr_zero(rest)];
        join(c.*fenced, c.seen);
      }
      return;
    }
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      Clock& c = own_clock(o, lane);
      join(c.*fenced, o.clock.seen);
      join(c.*fenced, c.seen);
      raise(c.*fenced, w.id, synced(o, w.alive));
      raise(c.*fenced, component_of(w, lane), o.now);
    }
  };
  if (spaces & kFenceShared) fence(&Clock::fenced);
  if (spaces & kFenceGlobal) fence(&Clock::fenced_global);
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

Relation relate(const Accessor& a, const Access& before, bool before_writes, bool global) {
  if (before.time == 0) return Relation::ordered;
  const Warp& issuer = *a.cluster->warps[before.warp];
  const bool by_warp = before.component == issuer.id;
  if (by_warp && &issuer == a.warp && a.lanes && before.time <= a.until) {
    // Lanes of one warp are unordered until they meet (independent thread scheduling): having been converged orders nothing.
    const auto& sync = before_writes ? a.lanes->sync : a.lanes->met;
    if (before.lane == a.lane && !before.several) return Relation::ordered;
    if (before.time < sync[a.lane] && (before.several || before.time < sync[before.lane])) return Relation::ordered;
  }
  const u32 lane = by_warp && !before.several ? issuer.order.lane_component[before.lane] : 0;
  auto in = [&](Times Clock::*which) {
    for (const Clock* c : {a.clock, a.apart}) {
      if (!c) continue;
      if (covers(c->*which, before.component, before.time) || (lane && covers(c->*which, lane, before.time))) return true;
    }
    return false;
  };
  if (!in(&Clock::seen)) return Relation::unordered;
  if (!a.async || !before_writes || before.async) return Relation::ordered;
  // What cp.async wrote needs no proxy fence before wgmma, once it has been waited for: neither CUTLASS's multistage products
  // nor Triton's pipelined ones have one between cp.async.wait_group and wgmma, though 9.7.15.2 asks for it.
  const auto kind = [&](u32 component) { return a.cluster->components[component].kind; };
  if (kind(before.component) == Component::cp_async && kind(a.component) == Component::wgmma) return Relation::ordered;
  return in(global ? &Clock::fenced_global : &Clock::fenced) ? Relation::ordered : Relation::unfenced;
}

}  // namespace tkpy::emulator
