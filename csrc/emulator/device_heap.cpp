#include "device_heap.h"

#include <algorithm>
#include <iterator>

namespace tkpy::emulator {

namespace {
constexpr u64 kAlignment = 16, kGap = 16;  // between allocations, so that overruns do not land in a neighbour
}

DeviceHeap::DeviceHeap() : storage_(kBytes / 8 + 2) {
  base_ = align_up(reinterpret_cast<u64>(storage_.data()), kAlignment);
  free_[base_] = kBytes;
}

u64 DeviceHeap::allocate(u64 bytes) {
  if (bytes > kBytes) return 0;
  const std::lock_guard lock(mutex_);
  const u64 wanted = align_up(std::max<u64>(bytes, 1), kAlignment) + kGap;
  const auto found = std::find_if(free_.begin(), free_.end(), [&](const auto& piece) { return piece.second >= wanted; });
  if (found == free_.end()) return 0;
  const auto [at, size] = *found;
  free_.erase(found);
  if (size > wanted) free_[at + wanted] = size - wanted;
  taken_[at] = bytes;
  for (u64 i = 0; i < wanted; i += 4) std::memcpy(reinterpret_cast<void*>(at + i), &kPoison, 4);
  return at;
}

bool DeviceHeap::release(u64 address) {
  const std::lock_guard lock(mutex_);
  const auto found = taken_.find(address);
  if (found == taken_.end()) return false;
  u64 start = address, size = align_up(std::max<u64>(found->second, 1), kAlignment) + kGap;
  taken_.erase(found);
  auto after = free_.lower_bound(start);
  if (after != free_.end() && after->first == start + size) {
    size += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == start) {
      start = before->first, size += before->second;
      free_.erase(before);
    }
  }
  free_[start] = size;
  return true;
}

bool DeviceHeap::holds(u64 address, u64 bytes) const {
  const std::lock_guard lock(mutex_);
  auto found = taken_.upper_bound(address);
  if (found == taken_.begin()) return false;
  --found;
  return address - found->first <= found->second && bytes <= found->second - (address - found->first);
}

}  // namespace tkpy::emulator
