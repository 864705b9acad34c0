// Races in shared memory, and the edges through strong operations. What comes before what: order.h; what memory
// remembers: shadow.h.
#include "race.h"

#include <algorithm>

#include "exec.h"

namespace tkpy::emulator {

namespace {

// How a thread sees that an operation of this chain is over; null for threads themselves.
const char* completion(const Accessor& a, u32 component, bool global) {
  switch (a.cluster->components[component].kind) {
    case Component::mbarrier: return "a wait for the phase of the mbarrier that the copy completes";
    case Component::bulk:
      return global ? "cp.async.bulk.wait_group in the thread that issued the copy, then a barrier"
                    : "cp.async.bulk.wait_group.read in the thread that issued the copy, then a barrier";
    case Component::cp_async: return "cp.async.wait_group in the threads that copied, then a barrier";
    case Component::wgmma: return "wgmma.wait_group for the group of the product, then a barrier or an mbarrier";
    default: return nullptr;
  }
}

}  // namespace

// What would have ordered the two. Which was to be first is not known when an operation meets what a thread has done.
std::string remedy(const Accessor& a, const Access& before, bool global) {
  if (const char* wait = completion(a, before.component, global)) return wait;
  const Warp& issuer = *a.cluster->warps[before.warp];
  std::string meet = "a barrier, an mbarrier, or a release and an acquire";
  if (&issuer == a.warp) meet = "bar.warp.sync";
  else if (issuer.cta != a.warp->cta) meet = "barrier.cluster, or a release and an acquire at cluster scope";
  const char* wait = completion(a, a.component, global);
  return wait ? std::string(wait) + ", before the other access; or after it " + meet + ", before the operation is issued" : meet;
}

namespace {

const char* noun(bool write, bool atomic) { return atomic ? "atomic" : write ? "write" : "read"; }

const char* who(const Accessor& a, const Access& before) {
  if (a.warp != a.cluster->warps[before.warp]) return a.warp->cta == a.cluster->warps[before.warp]->cta ? " by two warps" : " by two CTAs of a cluster";
  return a.agent || before.component != a.warp->id ? "" : " by two lanes of one warp";
}

// mbarriers live in shared memory too, but their arrivals and waits order themselves.
void report_race(const Accessor& a, const Cta& cta, u32 address, AccessKind kind, bool strong, const Access& before, bool before_writes,
                 Relation relation) {
  const std::string what = std::string(noun(kind != AccessKind::read, strong)) + " and " + noun(before_writes, before.atomic) +
                           " of shared address " + std::to_string(address) +
                           (a.warp->cta == &cta ? "" : " of CTA rank " + std::to_string(cta.rank)) + who(a, before);
  const Warp& other = *a.cluster->warps[before.warp];
  if (relation == Relation::unfenced)
    a.cluster->report_pair(Check::proxy_fence, a.site, *a.warp, a.lane, before.site, other, before.lane, [&] {
      return what + ": the first is in the generic proxy, the second in the async proxy, and no fence.proxy.async lies between them; "
                    "the writer executes it before it signals, or the issuer after it has synchronised";
    });
  else
    a.cluster->report_pair(Check::shared_race, a.site, *a.warp, a.lane, before.site, other, before.lane, [&] {
      return what + " with nothing between them that orders them; needed: " + remedy(a, before, false);
    });
}

std::string unfinished(const Cta& cta, const Warp& issuer) {
  if (issuer.cta == &cta) return "may still be under way when the CTA ends: no thread has waited for it";
  return "may use the shared memory of CTA rank " + std::to_string(cta.rank) +
         " after that CTA has ended; needed: a barrier.cluster, or a wait there, before it ends";
}

// CTAs of a cluster begin at different times (CUDA C++ Programming Guide, distributed shared memory): one has begun once the
// cluster has met, relaxed or not, or where something that it did comes before the access.
bool has_begun(const Cta& cta, const Accessor& a) {
  if (a.cluster->cluster_phase > 0) return true;
  const auto seen = [&](u32 component) { return component && covers(a.clock->seen, component, 1); };
  return covers(a.clock->seen, cta.warps[0].id, 1) || std::any_of(cta.warps.begin(), cta.warps.end(), [&](const Warp& w) {
           return seen(w.id) || std::any_of(w.order.lane_component.begin(), w.order.lane_component.end(), seen);
         });
}

void check_initialised(Exec& x, const Op& op, Cta& cta, u32 lane, u32 offset, u32 bytes) {
  const u8* init = cta.shared.init.data() + (offset - kSharedBase);
  for (u32 i = 0; i < bytes; ++i) {
    if (init[i]) continue;
    x.report(Check::uninitialised_read, op, lane,
             "read of " + std::to_string(bytes) + " bytes at shared address " + std::to_string(offset) + ", of which byte " +
                 std::to_string(i) + " was never written");
    return;
  }
}

}  // namespace

void touch_shared(const Accessor& a, Cta& cta, u32 offset, u32 bytes, AccessKind kind, bool strong, bool same_value) {
  SharedMemory& memory = cta.shared;
  if (kind != AccessKind::read) std::fill_n(memory.init.begin() + (offset - kSharedBase), bytes, u8{1});
  if (a.agent || &cta != a.warp->cta) visit(cta, a);
  for (u32 at = offset & ~3u; at < offset + bytes; at += 4) {
    const Access now = record_of(a, strong, cell_bytes(at, offset, u64{offset} + bytes));
    touch(a, memory.cells[(at - kSharedBase) / 4], memory.read_sets, now, kind, same_value, false,
          [&](const Access& before, bool writes, Relation r) { report_race(a, cta, at, kind, strong, before, writes, r); });
  }
}

Clock common_to(std::span<const Reader> readers) {
  Clock all;
  auto least = [&](Times Clock::*which) {
    Times& into = all.*which;
    into = readers[0].clock->*which;
    for (const Reader& reader : readers.subspan(1)) {
      const Times& times = reader.clock->*which;
      into.resize(std::min(into.size(), times.size()));
      for (std::size_t i = 0; i < into.size(); ++i) into[i] = std::min(into[i], times[i]);
    }
  };
  least(&Clock::seen);
  least(&Clock::fenced);
  return all;
}

void read_for_warps(Accessor a, std::span<const Reader> readers, const Clock& all, Cta& cta, u32 offset, u32 bytes) {
  auto check = [&](const Access& w, u32 at) {
    for (const Reader& reader : readers) {
      a.warp = reader.warp;
      a.warp_id = reader.warp->id;
      a.clock = reader.clock;
      if (const Relation r = relate(a, w, true, false); r != Relation::ordered) report_race(a, cta, at, AccessKind::read, false, w, true, r);
    }
  };
  a.warp = readers.back().warp;
  a.warp_id = a.warp->id;
  a.clock = readers.back().clock;
  const Access now = record_of(a, false, 15);
  for (u32 at = offset; at < offset + bytes; at += 4) {
    Cell& cell = cta.shared.cells[(at - kSharedBase) / 4];
    for (const Access* w : {&cell.write, &cell.other_write})
      if (w->bytes && !(covers(all.seen, w->component, w->time) && (w->async || covers(all.fenced, w->component, w->time)))) check(*w, at);
    record_read(a, cell, cta.shared.read_sets, now, false);
  }
}

void shared_access(Exec& x, const Op& op, Cta& cta, u32 lane, u32 offset, u32 bytes, AccessKind kind, bool strong,
                   const u8* incoming) {
  if (kind != AccessKind::write) check_initialised(x, op, cta, lane, offset, bytes);
  const u8* held = cta.shared.data.data() + (offset - kSharedBase);
  const bool same_value = incoming && std::memcmp(incoming, held, bytes) == 0;
  touch_shared(accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op)), cta, offset, bytes, kind, strong, same_value);
}

// A CTA's shared memory lives as long as the CTA: what others do to it must come after its begin, and what they or agents
// do before its end.
void visit(Cta& cta, const Accessor& a) {
  if (a.warp->cta != &cta && !has_begun(cta, a))
    a.cluster->report_at(Check::async_in_flight, a.cluster->launch->linked->site(a.site), *a.warp, a.lane,
                         "uses the shared memory of CTA rank " + std::to_string(cta.rank) +
                             ", which may not have begun; needed: a barrier.cluster, or another sign of that CTA, before");
  if (cta.has_ended) {
    a.cluster->report_at(Check::async_in_flight, a.cluster->launch->linked->site(a.site), *a.warp, a.lane, unfinished(cta, *a.warp));
    return;
  }
  if (cta.visits.size() <= a.component) cta.visits.resize(a.component + 1);
  Access& last = cta.visits[a.component];
  const bool several = last.time == a.time && (last.several || last.lane != (a.lane & 31));
  last = record_of(a, false, 0);
  last.several = several;
}

void end_cta(Cluster& c, Cta& cta) {
  cta.has_ended = true;
  for (const Cluster::Agent& a : c.agents)
    if (a.warp->cta == &cta && !a.has_read) c.report_at(Check::async_in_flight, a.site, *a.warp, a.lane, unfinished(cta, *a.warp));
  Accessor end;
  end.cluster = &c;
  end.warp = &cta.warps[0];
  end.clock = &cta.ended;
  end.agent = true;
  for (const Access& last : cta.visits) {
    const Warp& w = *c.warps[last.warp];
    if (relate(end, last, false, false) == Relation::unordered)
      c.report_at(Check::async_in_flight, c.launch->linked->site(last.site), w, last.lane, unfinished(cta, w));
  }
}

// Within a cluster scopes are not compared. Between clusters both sides must be of gpu scope. A read-modify-write there
// acquires at once, with no fence after it: the last block of a grid is commonly found so.
void acquire_from(Exec& x, u64 location, u32 flags, u32 mask) {
  Cluster& c = *x.cluster;
  auto learn = [&](const Clock& published, bool now) {
    observe_relaxed(*x.warp, mask, published);
    if (now) observe(*x.warp, mask, published);
  };
  if (const auto here = c.released.find(location); here != c.released.end()) learn(here->second, flags & kAcquire);
  if (!c.launch->across || !(flags & kGpuScope)) return;
  const auto abroad = c.launch->released.find(location);
  if (abroad != c.launch->released.end()) learn(from_abroad(c.linear, abroad->second), flags & (kAcquire | kReadModifyWrite));
}

void release_to(Exec& x, u64 location, u32 flags, u32 mask) {
  Cluster& c = *x.cluster;
  const WarpOrder& o = x.warp->order;
  if (!(flags & kRelease) && !(o.fence_lanes & mask)) return;
  Clock own, far;
  if (flags & kRelease) publish(*x.warp, mask, own), far = own;
  else publish_fenced(*x.warp, mask, false, own);
  if (!own.empty()) join(c.released[location], own);
  if (!(flags & kRelease) && c.launch->across && flags & kGpuScope && o.gpu_fence_lanes & mask) publish_fenced(*x.warp, mask, true, far);
  if (c.launch->across && flags & kGpuScope && !far.empty()) publish_abroad(c.linear, far, c.launch->released[location]);
}

// A fence makes earlier relaxed reads acquire and later relaxed writes release (PTX ISA 8.8, release and acquire patterns).
void exec_fence(Exec& x, const Op& op, u32 mask) {
  if (x.checked) fence(*x.warp, mask, op.a);
}

// fence.proxy.async (PTX ISA 9.7.13.4): bi-directional, takes effect in the thread that executes it. a: spaces.
void exec_proxy_fence(Exec& x, const Op& op, u32 mask) {
  if (x.checked) proxy_fence(*x.warp, mask, op.a);
}

}  // namespace tkpy::emulator
