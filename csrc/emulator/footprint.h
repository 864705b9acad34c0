// Which sectors of global memory a launch has read and written, each once however often: what has to cross between memory
// and a cache that keeps everything until the launch ends. Off unless a launch counts; workers share one.
#pragma once

#include <atomic>
#include <span>
#include <vector>

#include "common.h"

namespace tkpy::emulator {

struct Region;

class Footprint {
 public:
  static constexpr u64 kSector = 32;  // bytes
  explicit Footprint(std::span<const Region> regions);  // sorted and disjoint; accesses elsewhere are not kept

  void read(u64 address, u64 bytes) { mark(read_, address, bytes); }
  void write(u64 address, u64 bytes) { mark(written_, address, bytes); }
  u64 sectors_read() const { return marked(read_); }
  u64 sectors_written() const { return marked(written_); }

 private:
  using Bits = std::vector<std::atomic<u64>>;
  struct Range {
    u64 first, last;  // sectors
    u64 at;           // of the first one, among all bits
  };
  void mark(Bits& bits, u64 address, u64 bytes);
  static u64 marked(const Bits& bits);

  std::vector<Range> ranges_;
  Bits read_, written_;
};

}  // namespace tkpy::emulator
