#include "trace.h"

#include <algorithm>

namespace tkpy::emulator {

namespace {

constexpr u64 kL2Sectors = (50u << 20) / 32;
constexpr std::size_t kMaxEvents = 20'000'000;  // some 700 MB

}  // namespace

bool Trace::Cache::fetch(u64 sector, u64 capacity) {
  if (!held.insert(sector).second) return true;
  order.push_back(sector);
  if (order.size() > capacity) {
    held.erase(order.front());
    order.pop_front();
  }
  return false;
}

void Trace::commit(const TraceEvent& event) {
  if (result_.events.size() >= kMaxEvents) {
    result_.truncated = true;
  } else {
    TraceEvent& e = result_.events.emplace_back(event);
    e.note = static_cast<u32>(result_.notes.size());
    e.notes = static_cast<u32>(pending_.size());
    result_.notes.insert(result_.notes.end(), pending_.begin(), pending_.end());
  }
  pending_.clear();
}

Trace::Found Trace::touch(u32 cta, const u64* sectors, u32 count, bool cached) {
  Found found;
  for (u32 i = 0; i < count; ++i) {
    if (cached && l1_[cta].fetch(sectors[i], l1_sectors_)) ++found.l1;
    else if (l2_.fetch(sectors[i], kL2Sectors)) ++found.l2;
    else ++found.hbm;
  }
  return found;
}

void Trace::warm(u64 lo, u64 hi) {
  Found found;
  touch_range(lo, std::min(hi - lo, kL2Sectors * 32), found);
}

void Trace::touch_range(u64 address, u64 bytes, Found& found) {
  if (!bytes) return;
  for (u64 s = address / 32; s <= (address + bytes - 1) / 32; ++s) {
    if (s == found.last) continue;
    found.last = s;
    ++(l2_.fetch(s, kL2Sectors) ? found.l2 : found.hbm);
  }
}

}  // namespace tkpy::emulator
