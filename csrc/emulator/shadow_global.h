// What global memory remembers of accesses: cells in pages that are made when first touched. A cluster has its own, under
// the full order of its warps and agents; the launch has one of what clusters do to each other.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <unordered_map>

#include "findings.h"
#include "shadow.h"

namespace tkpy::emulator {

template <class C>
class Pages {
 public:
  static constexpr u64 kCells = 128;
  C& at(u64 address) {
    const u64 number = address / (4 * kCells);
    if (number != last_number_) {
      auto& page = pages_[number];
      if (!page) page = std::make_unique<Page>();
      last_number_ = number;
      last_ = page.get();
    }
    return (*last_)[address / 4 % kCells];
  }
  // Calls f(address, cell) in order of address.
  template <class F>
  void for_each(F&& f) {
    std::vector<u64> numbers;
    for (const auto& [number, page] : pages_) numbers.push_back(number);
    std::sort(numbers.begin(), numbers.end());
    for (u64 number : numbers)
      for (u64 i = 0; i < kCells; ++i) f((number * kCells + i) * 4, (*pages_[number])[i]);
  }

 private:
  using Page = std::array<C, kCells>;
  std::unordered_map<u64, std::unique_ptr<Page>> pages_;
  u64 last_number_ = ~u64{0};
  Page* last_ = nullptr;
};

// What writes left in a cell: its bytes' last values, and whether a byte has had several or unknown ones. Memory itself will
// not do: other clusters may be writing to it now.
struct Written {
  u32 value = 0;
  u8 bytes = 0, varied = 0;
  bool same(const Written& o) const;  // the same known values in all bytes that both have written
  void add(const Written& o);
};

struct GlobalCell : Cell {
  Written written;
};
struct GlobalMemory {
  Pages<GlobalCell> cells;
  ReadSets read_sets;
};

// The last write of a cell by any cluster, and two clusters that read it.
struct AcrossCell {
  Access write, read[2];
  u32 write_cluster = 0, read_cluster[2] = {};
  Written written;
};

struct Launch;
struct Cluster;

// Clusters that cannot talk to each other have no order. They run in any order, and what each did is added here in theirs,
// so that the findings depend on neither threads nor time.
class AcrossClusters {
 public:
  // Adds all that a finished cluster has done; conflicts become findings.
  void add(const Launch& launch, u32 cluster, GlobalMemory& memory, std::vector<Finding>& findings);
  // Adds one access of a cluster that may be ordered after other clusters' by atomics and fences.
  void access(const Accessor& a, u64 address, const Access& now, AccessKind kind, const Written& written);
  // The last write of these bytes, by another cluster; null when there was none.
  const Access* written_abroad(u32 cluster, u64 address, u32 bytes, u32& by);

 private:
  struct Pair {  // of accesses by two clusters
    u64 address;
    AccessKind kind;
    const Access &now, &before;
    u32 other;
    bool writes;  // before
    Relation relation;
  };
  // None when it is not wanted or has been reported.
  std::optional<Finding> finding(const Launch& launch, u32 cluster, const Pair& p);
  template <class Relate, class Race>
  void touch(u32 cluster, AcrossCell& cell, const Access& now, AccessKind kind, const Written& written, Relate&& relate, Race&& race);
  Pages<AcrossCell> cells_;
  std::unordered_map<u64, bool> reported_;
};

// ld.global.nc: its cache may hold what was there before the kernel wrote (PTX ISA 9.7.9.9), whatever orders the two.
void check_never_written(const Accessor& a, u64 address, u64 bytes);

// Checks and records an access to global memory; `incoming`: what a write stores, null when that is not known.
void touch_global(const Accessor& a, u64 address, u64 bytes, AccessKind kind, bool strong, const u8* incoming);

}  // namespace tkpy::emulator
