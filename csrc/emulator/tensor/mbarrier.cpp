#include "mbarrier.h"

namespace tkpy::emulator::tensor {

namespace {

constexpr u64 kField = kMbarrierMaxCount, kTxField = (u64{1} << 21) - 1;
constexpr u32 kExpectedShift = 20, kTxShift = 40, kParityShift = 61, kTagShift = 62;
constexpr u64 kTag = 2;

std::string invalid(u64 object) {
  if (mbarrier_valid(object)) return {};
  if (object == 0) return "there is no mbarrier here: never initialised, or invalidated";
  return "there is no mbarrier here: not initialised, or overwritten";
}

std::string bad_count(const char* what, u32 count) {
  return std::string(what) + " must be 1 to " + std::to_string(kMbarrierMaxCount) + ", got " + std::to_string(count);
}

std::string add_tx(MbarrierState& s, i64 bytes, const char* what) {
  const i64 sum = s.tx + bytes;
  if (sum > i64{kMbarrierMaxCount} || sum < -i64{kMbarrierMaxCount}) {
    return std::string(what) + " takes the tx-count from " + std::to_string(s.tx) + " to " + std::to_string(sum) +
           ", beyond 2^20 - 1 bytes";
  }
  s.tx = static_cast<i32>(sum);
  return {};
}

void end_phase(MbarrierState& s, bool* completed) {
  if (s.pending != 0 || s.tx != 0) return;
  s.pending = s.expected;
  s.parity ^= 1;
  *completed = true;
}

std::string arrive_on(MbarrierState& s, const MbarrierArrival& arrival, bool* completed) {
  if (arrival.count > s.pending) {
    return "arrival of " + std::to_string(arrival.count) + " where " + std::to_string(s.pending) + " of " +
           std::to_string(s.expected) + " are still pending in this phase";
  }
  if (arrival.no_complete && arrival.count == s.pending && s.tx == 0) {
    return ".noComplete arrival of the last " + std::to_string(arrival.count) + " pending ends the phase";
  }
  s.pending -= arrival.count;
  if (arrival.drop) s.expected -= arrival.count;  // expected >= pending always holds
  end_phase(s, completed);
  return {};
}

}  // namespace

bool mbarrier_valid(u64 object) { return object >> kTagShift == kTag; }

MbarrierState mbarrier_decode(u64 object) {
  MbarrierState s;
  s.pending = static_cast<u32>(object & kField);
  s.expected = static_cast<u32>(object >> kExpectedShift & kField);
  const u32 tx = static_cast<u32>(object >> kTxShift & kTxField);
  s.tx = static_cast<i32>(tx << 11) >> 11;
  s.parity = static_cast<u32>(object >> kParityShift & 1);
  return s;
}

u64 mbarrier_encode(const MbarrierState& s) {
  const u64 tx = static_cast<u32>(s.tx) & kTxField;
  return s.pending | u64{s.expected} << kExpectedShift | tx << kTxShift | u64{s.parity} << kParityShift |
         kTag << kTagShift;
}

std::string mbarrier_describe(u64 object) {
  if (std::string text = invalid(object); !text.empty()) return text;
  const MbarrierState s = mbarrier_decode(object);
  return "phase parity " + std::to_string(s.parity) + ", " + std::to_string(s.pending) + " of " +
         std::to_string(s.expected) + " arrivals and " + std::to_string(s.tx) + " bytes pending";
}

std::string mbarrier_init(u64& object, u32 count) {
  if (count == 0 || count > kMbarrierMaxCount) return bad_count("the count of mbarrier.init", count);
  std::string text;
  if (mbarrier_valid(object)) text = "a second init without mbarrier.inval (" + mbarrier_describe(object) + ")";
  object = mbarrier_encode({count, count, 0, 0});
  return text;
}

std::string mbarrier_inval(u64& object) {
  if (std::string text = invalid(object); !text.empty()) return text;
  object = 0;
  return {};
}

std::string mbarrier_expect_tx(u64& object, u32 bytes) {
  if (std::string text = invalid(object); !text.empty()) return text;
  MbarrierState s = mbarrier_decode(object);
  if (std::string text = add_tx(s, bytes, "expect_tx"); !text.empty()) return text;
  object = mbarrier_encode(s);
  return {};
}

std::string mbarrier_complete_tx(u64& object, u32 bytes, bool* completed) {
  if (std::string text = invalid(object); !text.empty()) return text;
  MbarrierState s = mbarrier_decode(object);
  if (std::string text = add_tx(s, -i64{bytes}, "complete_tx"); !text.empty()) return text;
  end_phase(s, completed);
  object = mbarrier_encode(s);
  return {};
}

std::string mbarrier_arrive(u64& object, const MbarrierArrival& arrival, u64* state, bool* completed) {
  if (std::string text = invalid(object); !text.empty()) return text;
  if (arrival.count == 0 || arrival.count > kMbarrierMaxCount) {
    return bad_count("the count of an arrival", arrival.count);
  }
  MbarrierState s = mbarrier_decode(object);
  if (arrival.expects) {
    if (std::string text = add_tx(s, arrival.expect_bytes, "expect_tx"); !text.empty()) return text;
  }
  if (std::string text = arrive_on(s, arrival, completed); !text.empty()) return text;
  if (state) *state = object;
  object = mbarrier_encode(s);
  return {};
}

std::string mbarrier_test_state(u64 object, u64 state, bool* done) {
  if (std::string text = invalid(object); !text.empty()) return text;
  if (!mbarrier_valid(state)) return "the state operand did not come from an mbarrier operation";
  *done = mbarrier_decode(object).parity != mbarrier_decode(state).parity;
  return {};
}

std::string mbarrier_test_parity(u64 object, u32 parity, bool* done) {
  if (std::string text = invalid(object); !text.empty()) return text;
  if (parity > 1) return "the phase parity must be 0 or 1, got " + std::to_string(parity);
  *done = mbarrier_decode(object).parity != parity;
  return {};
}

std::string mbarrier_pending_count(u64 state, u32* count) {
  if (!mbarrier_valid(state)) return "the state operand did not come from an mbarrier operation";
  *count = mbarrier_decode(state).pending;
  return {};
}

}  // namespace tkpy::emulator::tensor
