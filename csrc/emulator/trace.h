// What warps did, in order, for models of time (tkpy/emulator/timing): off unless a launch asks for it, and then without
// effect on what runs. One host thread runs a traced launch.
//
// An event is one warp instruction that took effect; polls that failed are in it, waits that were repeated are not. What a
// model cannot see in the instruction's text stands in its notes:
//
//   mbarrier          kind (MbarrierOp), then for each lane place, and for
//                       init count | arrive count, bytes expected | expect_tx, complete_tx bytes | waits parity, success
//   bar, barrier      number, threads (0: all)
//   bulk copies       direction (0 global to shared, 1 shared to global, 2 shared to shared), bytes, sectors found in L2,
//                     sectors from HBM, destinations; then the place of each one's mbarrier
//   cp.async          sectors found in L2, sectors from HBM
//   plain accesses    of global memory: sectors found in L1, in L2, from HBM;  of another CTA's shared memory: bytes
//
// A place is CTA rank << 32 | shared address. Where a sector of 32 bytes is found follows from who touched it before, in
// the order of the emulator: caches keep the sectors that were brought in last.
#pragma once

#include <deque>
#include <initializer_list>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common.h"

namespace tkpy::emulator {

struct TraceEvent {
  u32 cta = 0, warp = 0;        // linear in the grid; within the CTA
  u32 function = 0, instr = 0;
  u32 lanes = 0;                // 0: predicated off
  u32 wavefronts = 0;           // passes through shared memory
  u32 note = 0, notes = 0;      // first of `notes`, and how many
};

struct TraceResult {
  std::vector<TraceEvent> events;
  std::vector<u64> notes;
  bool truncated = false;
};

class Trace {
 public:
  // Clusters whose number leaves `slot` when divided by `slots` are recorded: those that one place of the machine gets.
  Trace(u32 slots, u32 slot, u64 l1_bytes) : slots_(slots), slot_(slot), l1_sectors_(l1_bytes / 32) {}

  bool records(u32 cluster) const { return cluster % slots_ == slot_ && !result_.truncated; }
  void note(std::initializer_list<u64> values) { pending_.insert(pending_.end(), values); }
  void commit(const TraceEvent& event);
  void drop() { pending_.clear(); }

  struct Found {
    u32 l1 = 0, l2 = 0, hbm = 0;
    u64 last = ~u64{0};  // of a range: pieces of one sector that follow each other count once
  };
  // Where the sectors of an access by this CTA are; `cached`: L1 may hold them.
  Found touch(u32 cta, const u64* sectors, u32 count, bool cached);
  // The same for the memory of a bulk copy, which passes L1 by; adds to `found`.
  void touch_range(u64 address, u64 bytes, Found& found);
  // L2 holds this memory, as much of it as goes in.
  void warm(u64 lo, u64 hi);

  TraceResult take() { return std::move(result_); }

 private:
  struct Cache {
    std::unordered_set<u64> held;
    std::deque<u64> order;
    bool fetch(u64 sector, u64 capacity);  // whether it was there
  };
  u32 slots_, slot_;
  u64 l1_sectors_;
  std::unordered_map<u32, Cache> l1_;  // by CTA
  Cache l2_;
  std::vector<u64> pending_;
  TraceResult result_;
};

}  // namespace tkpy::emulator
