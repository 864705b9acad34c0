// Happens-before (PTX ISA 8.9, causality order): vector clocks of warps, lanes and asynchronous agents.
//
// A clock has a component for each chain of events that program order or a completion mechanism puts in order:
//   warp            its own time, which moves on at everything that publishes
//   lane            of a warp, made when the lane first publishes without the others; runs on its warp's time
//   mbarrier        copies that complete on it; time: the phase (from 1) in which they landed
//   bulk groups     of one thread: sources read, and one component further destinations written; time: how many were issued
//   cp.async        of one warp; time: how many were issued (CopyWaits), and of one lane where it has them arrive on an mbarrier
//   wgmma           of one warpgroup; time: how many were issued
// Waiting for a phase or a group observes all earlier ones of its chain, so one number a chain is exact.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "common.h"

namespace tkpy::emulator {

struct Warp;
struct Cluster;

using Times = std::vector<u32>;  // by component; components beyond its end are 0

inline bool covers(const Times& t, u32 component, u32 time) { return component < t.size() && t[component] >= time; }
void raise(Times& t, u32 component, u32 time);

// What is seen of another cluster, and of that the generic writes to global memory that a proxy fence has shown to the async proxy.
struct Abroad {
  Times seen, fenced;
};

struct Clock {
  Times seen;           // accesses up to these times happen before
  Times fenced;         // of those, generic writes to shared memory that a proxy fence has shown to the async proxy
  Times fenced_global;  // the same for global memory
  Times fenced_maps;    // of writes to global memory, what a release has shown to the tensormap proxy, once it acquires
  std::map<u32, Abroad> others;  // by cluster; only where clusters talk to each other
  bool empty() const { return seen.empty() && others.empty(); }
  const Abroad* of(u32 cluster) const {
    const auto c = others.find(cluster);
    return c == others.end() ? nullptr : &c->second;
  }
};
void join(Clock& into, const Clock& from);

// What a component belongs to, for messages.
struct Component {
  enum Kind : u8 { warp, lane, mbarrier, bulk, cp_async, wgmma } kind = warp;
};

// The times of a warp at which each of its lanes last met others.
//
// bar.warp.sync and barriers order all that lanes do (PTX ISA 9.7.13.2). shfl.sync, vote.sync, match.sync and redux.sync
// promise no memory ordering (nor does elect.sync): what one lane has written, another may still not see. But what a lane has
// read may be what passes through them, and no read returns a write that depends on its own result (8.10.4, no thin air).
// What depends on what is not known here, so that a write after an exchange counts as coming after the reads before it.
//
// While every meeting is of all lanes that are alive, one time a lane says it all. Where some meet by themselves (a member
// mask) the warp is split until all meet again: then each lane has its own time for each other one.
struct LaneTimes {
  std::array<u32, kLanes> sync{};  // at a barrier of all
  std::array<u32, kLanes> met{};   // at that, or at an exchange of values among all
  struct Split {
    std::array<std::array<u32, kLanes>, kLanes> sync{}, met{};  // [lane][other]: what the other did before that time is seen
  };
  std::shared_ptr<Split> split;    // null: not split. Shared with copies of these times, which keep what they had.
};

// A cp.async instruction, whose copies each lane waits for by itself: when they did, in times of their warp. To others it is
// then as if the lane had made its copies at that moment.
struct CopyWaits {
  u32 issued = 0, waited = 0;  // lanes
  u32 first = 0, time = 0;     // the lanes that waited first, and when; of the others: WarpOrder::later_waits
};
struct LaterWait {
  u32 lanes, time;
};

// The last fence of a lane: what came before it.
struct LaneFence {
  u32 time = 0;                            // of the warp; 0: none yet
  u32 copies = 0;                          // WarpOrder::copies_done then
  std::shared_ptr<const Clock> clock;      // what the lane had seen, but of its own warp
  std::shared_ptr<LaneTimes::Split> split; // whom of its warp it had met
};
struct LaneFences {
  std::array<LaneFence, kLanes> any, gpu;  // of gpu scope
};

// The order of one warp. What all its lanes have seen is in `clock`; what a lane has seen beyond that, in `apart`.
struct WarpOrder {
  u32 now = 1;
  Clock clock;                          // its own component: times of this warp that every lane comes after
  std::array<std::unique_ptr<Clock>, kLanes> apart;
  u32 apart_lanes = 0;
  LaneTimes lanes;                      // when each lane last met others of its warp
  std::array<u16, kLanes> lane_component{};
  std::array<u16, kLanes> bulk_component{};
  std::array<u32, kLanes> bulk_issued{};
  u16 copy_component = 0;               // of cp.async
  std::array<u16, kLanes> lane_copy_component{};
  u32 copies_issued = 0;
  u32 copies_done = 0;                  // all up to this one have been waited for, each by all lanes that made it
  std::vector<CopyWaits> copies;        // by number - 1
  std::unordered_multimap<u32, LaterWait> later_waits;  // by number
  // What relaxed operations of a lane publish is what came before its last fence (of gpu scope).
  std::unique_ptr<LaneFences> fences;    // made at the first
  u32 fence_lanes = 0, gpu_fence_lanes = 0;
  std::map<u32, Clock> pending_acquire;  // what relaxed reads have seen, by lanes that read: theirs at their next fence
};

// Spaces of a proxy fence.
enum : u32 { kFenceShared = 1, kFenceGlobal = 2, kFenceMaps = 4 };

// Adds to `into` all that happens before this moment in lanes `mask` of the warp.
void publish(Warp& w, u32 mask, Clock& into);
// The same for an operation that each of the lanes starts for itself: what all of them come after.
void publish_each(Warp& w, Clock& into);
// The same as other clusters see it, and back.
void publish_abroad(u32 cluster, const Clock& from, Clock& into);
Clock from_abroad(u32 cluster, const Clock& from);
inline u64 lane_key(u32 cluster, u32 warp, u32 lane) { return u64{cluster} << 32 | warp << 5 | lane; }
constexpr u64 kCopiesOfLane = u64{1} << 31;  // with it, the key of its cp.async
// Adds what lanes that exit have seen.
void retire(const Warp& w, u32 mask, Clock& into);
// Lanes `mask` come after all that is in `from`, or after one time of one component.
void observe(Warp& w, u32 mask, const Clock& from);
void observe(Warp& w, u32 mask, u32 component, u32 time);
// Lanes meet: at a barrier; or in an exchange of values, which orders reads before writes alone (LaneTimes).
void sync_lanes(Warp& w, u32 lanes);
// A cp.async by these lanes: its number. What lanes that wait for it do; and the component of one lane's copies.
u32 issue_copies(Warp& w, u32 lanes);
void wait_for_copies(Warp& w, u32 number, u32 lanes);
u16 lane_copies(Warp& w, u32 lane);
void exchange_lanes(Warp& w, u32 lanes);
void proxy_fence(Warp& w, u32 mask, u32 spaces);
// A fence, of gpu scope or narrower. What relaxed operations by lanes publish after it; what they have seen before it.
void fence(Warp& w, u32 mask, bool gpu);
void publish_fenced(Warp& w, u32 mask, bool gpu, Clock& into);
void observe_relaxed(Warp& w, u32 mask, const Clock& from);
// The first of `count` new components. When there are too many the last ones are shared, which hides races.
u16 new_component(Cluster& c, Component::Kind kind, u32 count = 1);

// An access that a cell of memory remembers.
struct Access {
  u32 time = 0;          // of the component; 0: never
  u32 site : 24 = 0;     // index into Cluster::sites
  u32 bytes : 4 = 0;     // which bytes of the cell
  u32 atomic : 1 = 0;
  u32 async : 1 = 0;     // by the async proxy
  u32 several : 1 = 0;   // lanes
  u32 non_coherent : 1 = 0;  // a read by ld.global.nc
  u16 component = 0;
  u16 warp : 11 = 0;     // that issued it
  u16 lane : 5 = 0;
};

// Someone who accesses memory now, and what comes before that.
struct Accessor {
  Cluster* cluster = nullptr;
  const Warp* warp = nullptr;
  u32 warp_id = 0;
  u32 lane = 0;
  u32 site = 0;
  u32 component = 0, time = 0;
  const Clock* clock = nullptr;  // of the warp's lanes together, or of the agent
  const Clock* apart = nullptr;  // of this lane alone
  const LaneTimes* lanes = nullptr;  // of a lane; of an agent, where a lane starts it for itself (cp.async): those then
  u32 until = ~u32{0};               // the warp's time then
  bool agent = false;            // has no program order with its issuer's later accesses
  bool async = false;
  bool non_coherent = false;
};
Accessor accessor(Cluster& c, const Warp& w, u32 lane, u32 site);

enum class Relation : u8 { ordered, unfenced, unordered };
Relation relate_in_full(const Accessor& a, const Access& before, bool before_writes, bool global, u32 lanes);
// How an earlier access and this one stand. Unfenced: ordered, but a generic write that the async proxy may not see.
// `lanes`: of an access by several; 0: unknown. First what settles most of them.
inline Relation relate(const Accessor& a, const Access& before, bool before_writes, bool global, u32 lanes = 0) {
  if (before.time == 0) return Relation::ordered;
  if (a.lanes && before.component == a.warp_id && before.time <= a.until) {  // by a lane of the accessor's own warp
    if (before.lane == a.lane && !before.several) return Relation::ordered;
    const auto& sync = before_writes ? a.lanes->sync : a.lanes->met;
    if (before.time < sync[a.lane] && (before.several || before.time < sync[before.lane])) return Relation::ordered;
  }
  if (covers(a.clock->seen, before.component, before.time) &&
      (!a.async || !before_writes || before.async ||
       covers(global ? a.clock->fenced_global : a.clock->fenced, before.component, before.time)))
    return Relation::ordered;
  return relate_in_full(a, before, before_writes, global, lanes);
}

// Whether a release to the tensormap proxy, of what this lane has seen, came after the write.
bool released_to_maps(const Accessor& a, const Access& write);

// An asynchronous operation between its issue and its effect: what came before it, and who issued it.
struct Issue {
  Cluster* cluster = nullptr;
  Clock start;
  const Warp* warp = nullptr;
  u32 lane = 0;
  u32 site = 0;
  bool checked = false;
  Accessor as(u32 component, u32 time, bool async) const;
};

}  // namespace tkpy::emulator
