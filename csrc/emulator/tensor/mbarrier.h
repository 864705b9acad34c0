// The mbarrier object (PTX ISA 9.7.13.15) as a state machine inside its own 64 bits of shared memory.
//
// Bits: pending arrivals 0-19, expected arrivals 20-39, tx-count 40-60 (two's complement), phase parity 61, and 0b10 in
// 62-63, which tells an object from zeroes and from uninitialised memory. A phase completes when its pending arrivals
// and its tx-count are both zero; the next one starts at once with the expected arrivals pending (9.7.13.15.4).
//
// Every operation returns what is wrong with it, or an empty text. An operation that is wrong changes nothing, except
// that a second init still initialises. Memory order, scopes and who may wait are the caller's.
#pragma once

#include "../common.h"

namespace tkpy::emulator::tensor {

constexpr u32 kMbarrierMaxCount = (1u << 20) - 1;  // of arrivals, and of the tx-count's magnitude

struct MbarrierState {
  u32 pending = 0, expected = 0;
  i32 tx = 0;
  u32 parity = 0;  // of the current, incomplete phase
};

bool mbarrier_valid(u64 object);
MbarrierState mbarrier_decode(u64 object);
u64 mbarrier_encode(const MbarrierState& state);
// "phase parity 0, 2 of 4 arrivals and 512 bytes pending"
std::string mbarrier_describe(u64 object);

std::string mbarrier_init(u64& object, u32 count);
std::string mbarrier_inval(u64& object);
std::string mbarrier_expect_tx(u64& object, u32 bytes);
// *completed tells whether the phase ended; never cleared.
std::string mbarrier_complete_tx(u64& object, u32 bytes, bool* completed);

struct MbarrierArrival {
  u32 count = 1;
  bool no_complete = false;  // .noComplete: must not end the phase
  bool drop = false;         // arrive_drop: later phases expect fewer arrivals too
  bool expects = false;      // .expect_tx, before the arrival
  u32 expect_bytes = 0;
};
// *state: the opaque token, the object as it was before the arrival (may be null).
std::string mbarrier_arrive(u64& object, const MbarrierArrival& arrival, u64* state, bool* completed);

// *done: the phase of the token, or the phase of this parity, has completed. Parity p waits for the latest phase of
// parity p: true as long as the current phase has the other one, so a fresh barrier passes parity 1.
std::string mbarrier_test_state(u64 object, u64 state, bool* done);
std::string mbarrier_test_parity(u64 object, u32 parity, bool* done);
std::string mbarrier_pending_count(u64 state, u32* count);

}  // namespace tkpy::emulator::tensor
