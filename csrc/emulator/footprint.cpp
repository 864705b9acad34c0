#include "footprint.h"

#include <algorithm>
#include <bit>

#include "machine.h"

namespace tkpy::emulator {

Footprint::Footprint(std::span<const Region> regions) {
  u64 sectors = 0;
  for (const Region& r : regions) {
    if (r.heap) continue;  // as large as memory, and nobody's operand
    u64 first = r.lo / kSector;
    const u64 last = (r.hi - 1) / kSector;
    if (!ranges_.empty() && ranges_.back().last == first) ++first;  // two buffers in one sector: it counts once
    if (first > last) continue;
    ranges_.push_back({first, last, sectors});
    sectors += last - first + 1;
  }
  read_ = Bits(sectors / 64 + 1);
  written_ = Bits(sectors / 64 + 1);
}

void Footprint::mark(Bits& bits, u64 address, u64 bytes) {
  if (bytes == 0) return;
  u64 sector = address / kSector;
  const u64 end = (address + bytes - 1) / kSector;
  auto range = std::lower_bound(ranges_.begin(), ranges_.end(), sector, [](const Range& r, u64 s) { return r.last < s; });
  for (; sector <= end && range != ranges_.end(); ++sector) {
    if (sector > range->last) ++range;
    if (range == ranges_.end() || sector < range->first) continue;
    const u64 bit = range->at + sector - range->first, mask = u64{1} << bit % 64;
    std::atomic<u64>& word = bits[bit / 64];
    if (!(word.load(std::memory_order_relaxed) & mask)) word.fetch_or(mask, std::memory_order_relaxed);
  }
}

u64 Footprint::marked(const Bits& bits) {
  u64 count = 0;
  for (const auto& word : bits) count += static_cast<u64>(std::popcount(word.load(std::memory_order_relaxed)));
  return count;
}

}  // namespace tkpy::emulator
