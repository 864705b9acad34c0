// The heap of device-side malloc and free. It belongs to the module and keeps its contents from launch to launch.
#pragma once

#include <map>
#include <mutex>

#include "common.h"

namespace tkpy::emulator {

class DeviceHeap {
 public:
  static constexpr u64 kBytes = u64{8} << 20;  // cudaLimitMallocHeapSize's default

  DeviceHeap();
  u64 address() const { return base_; }
  u64 allocate(u64 bytes);  // 0: no room
  bool release(u64 address);  // false: not the start of an allocation
  bool holds(u64 address, u64 bytes) const;  // wholly inside one allocation

 private:
  mutable std::mutex mutex_;
  std::vector<u64> storage_;
  u64 base_;
  std::map<u64, u64> taken_, free_;  // start to bytes
};

}  // namespace tkpy::emulator
