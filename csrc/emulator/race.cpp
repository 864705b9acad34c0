// Happens-before for shared memory: FastTrack epochs per 4-byte cell, vector clocks per warp, and per lane the time of its
// last warp-level synchronisation. Lanes of one warp are unordered between those (independent thread scheduling): having
// been converged orders nothing.
#include <algorithm>

#include "exec.h"

namespace tkpy::emulator {

void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

void sync_lanes(Warp& w, u32 lanes) {
  const u32 now = ++w.clock[w.id];
  for (u32 lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1) w.lane_sync[lane] = now;
}

namespace {

bool ordered(const Warp& w, u32 lane, const Access& before) {
  if (before.time == 0) return true;
  if (before.warp != w.id) return before.time <= w.clock[before.warp];
  if (before.lane == lane) return true;
  return before.time < w.lane_sync[lane] && (before.lane >= kLanes || before.time < w.lane_sync[before.lane]);
}

const char* noun(bool write, bool atomic) { return atomic ? "atomic" : write ? "write" : "read"; }

void report_race(Exec& x, const Op& op, u32 lane, u32 offset, AccessKind kind, const Access& other, bool other_writes) {
  const Warp& w = *x.cluster->warps[other.warp];
  const bool same_warp = &w == x.warp;
  x.report(Check::shared_race, op, lane,
           std::string(noun(kind != AccessKind::read, kind == AccessKind::atomic)) + " and " +
               noun(other_writes, other.atomic) + " of shared address " + std::to_string(offset) +
               (same_warp ? " by two lanes of one warp with no warp-level synchronisation between them"
                          : " by two warps with no barrier between them"),
           x.cluster->sites[other.site], w.index, other.lane < kLanes ? other.lane : 0, w.cta->linear);
}

void check_reads(Exec& x, const Op& op, SharedMemory& memory, Cell& cell, u32 lane, u32 offset, const Access& now,
                 AccessKind kind) {
  auto check = [&](const Access& read) {
    if (!(read.bytes & now.bytes) || (read.atomic && now.atomic)) return;
    if (!ordered(*x.warp, lane, read)) report_race(x, op, lane, offset, kind, read, false);
  };
  check(cell.read);
  if (cell.readers)
    for (const Access& read : memory.read_sets[cell.readers - 1]) check(read);
}

void record_read(Exec& x, SharedMemory& memory, Cell& cell, const Access& now, u32 lane) {
  const Warp& w = *x.warp;
  auto merge = [&](Access& slot) {
    if (slot.time == now.time && slot.warp == now.warp) {
      slot.lane = slot.lane == now.lane ? now.lane : u8{255};
      slot.bytes |= now.bytes;
      slot.atomic &= now.atomic;
    } else {
      slot = now;
    }
  };
  if (cell.readers == 0 && (cell.read.time == 0 || cell.read.warp == now.warp || ordered(w, lane, cell.read)))
    return merge(cell.read);
  if (cell.readers == 0) {
    memory.read_sets.push_back({cell.read});
    cell.readers = static_cast<u32>(memory.read_sets.size());
    cell.read = Access{};
  }
  auto& set = memory.read_sets[cell.readers - 1];
  const auto mine = std::find_if(set.begin(), set.end(), [&](const Access& a) { return a.warp == now.warp; });
  if (mine != set.end()) merge(*mine);
  else set.push_back(now);
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

void shared_access(Exec& x, const Op& op, Cta& cta, u32 lane, u32 offset, u32 bytes, AccessKind kind, bool strong,
                   const u8* incoming) {
  SharedMemory& memory = cta.shared;
  Warp& w = *x.warp;
  const u8* held = memory.data.data() + (offset - kSharedBase);
  if (kind != AccessKind::write) check_initialised(x, op, cta, lane, offset, bytes);
  if (kind != AccessKind::read) std::fill_n(memory.init.begin() + (offset - kSharedBase), bytes, u8{1});
  // Writing the value that is already there is not reported against other writes: flags set by many threads.
  const bool same_value = incoming && std::memcmp(incoming, held, bytes) == 0;
  Access now;
  now.time = w.clock[w.id];
  now.site = x.cluster->site(x, op);
  now.warp = static_cast<u16>(w.id);
  now.lane = static_cast<u8>(lane);
  now.atomic = strong;
  for (u32 at = offset & ~3u; at < offset + bytes; at += 4) {
    const u32 first = std::max(offset, at) - at, last = std::min(offset + bytes, at + 4) - at;
    now.bytes = static_cast<u8>(((1u << last) - 1) & ~((1u << first) - 1));
    Cell& cell = memory.cells[(at - kSharedBase) / 4];
    const bool both_atomic = now.atomic && cell.write.atomic;
    if ((cell.write.bytes & now.bytes) && !both_atomic && !(kind == AccessKind::write && same_value) &&
        !ordered(w, lane, cell.write))
      report_race(x, op, lane, at, kind, cell.write, true);
    if (kind == AccessKind::read) {
      record_read(x, memory, cell, now, lane);
    } else {
      check_reads(x, op, memory, cell, lane, at, now, kind);
      if (!(same_value && kind == AccessKind::write && cell.write.time && !ordered(w, lane, cell.write))) cell.write = now;
      cell.read = Access{};
      cell.readers = 0;
    }
  }
}

void acquire_from(Exec& x, u64 location, u32 flags) {
  const auto published = x.cluster->released.find(location);
  if (published == x.cluster->released.end()) return;
  join(x.warp->pending_acquire, published->second);
  if (flags & kAcquire) join(x.warp->clock, published->second);
}

void release_to(Exec& x, u64 location, u32 flags) {
  Warp& w = *x.warp;
  Clock& to = x.cluster->released[location];
  if (flags & kRelease) {
    join(to, w.clock);
    ++w.clock[w.id];
  } else {
    join(to, w.fence_clock);
  }
}

// A fence makes earlier relaxed reads acquire and later relaxed writes release (PTX ISA 8.8, release and acquire patterns).
void exec_fence(Exec& x, const Op&, u32) {
  Warp& w = *x.warp;
  if (!x.checked) return;
  join(w.clock, w.pending_acquire);
  w.fence_clock = w.clock;
  ++w.clock[w.id];
}

}  // namespace tkpy::emulator
