// The reads that a cell of memory remembers.
#include "shadow.h"

#include <bit>

#include "machine.h"

namespace tkpy::emulator {

namespace {

// Lanes that read the same bytes at one time share a record, and so do several bytes that one lane reads then.
bool joins(const Access& record, u32 lanes, const Access& now) {
  return record.component == now.component && record.time == now.time && record.atomic == now.atomic &&
         record.non_coherent == now.non_coherent && (record.bytes == now.bytes || lanes == 1u << now.lane);
}

void join(Access& record, u32& lanes, const Access& now) {
  record.several |= record.lane != now.lane;
  record.bytes |= now.bytes;
  lanes |= 1u << now.lane;
}

// Whether what conflicts with the record would conflict with the read as well.
bool as_strict(const Access& now, const Access& record) {
  return !(record.bytes & ~now.bytes) && now.atomic <= record.atomic && now.non_coherent >= record.non_coherent;
}

// Who comes after the read comes after the record too. Lanes of a warp, and their cp.async, have program order each for itself;
// all other components are chains.
bool replaces(const Accessor& a, const Access& now, const Access& record, u32 lanes, bool global) {
  if (!as_strict(now, record)) return false;
  const auto kind = a.cluster->components[record.component].kind;
  if (record.component == now.component && kind != Component::warp && kind != Component::cp_async) return record.time <= now.time;
  // An exchange of values puts reads before writes alone (LaneTimes), so that it has to be order for what is written.
  return relate(a, record, true, global, lanes) != Relation::unordered;
}

void leave(Access& record, u32& lanes, u32 lane) {
  lanes &= ~(1u << lane);
  if (record.lane == lane && lanes) record.lane = static_cast<u16>(std::countr_zero(lanes));
  record.several = (lanes & (lanes - 1)) != 0;
}

// The cell has one record again, or none.
void simplify(Cell& cell, ReadSets& sets) {
  const u32 number = cell.readers - 1;
  auto& set = sets.sets[number];
  if (set.size() > 1) return;
  cell.readers = 0;
  if (!set.empty()) cell.read = set[0], cell.readers = set[0].lanes;
  set.clear();
  sets.unused.push_back(number);
}

void make_set(Cell& cell, ReadSets& sets) {
  if (sets.unused.empty()) {
    sets.sets.emplace_back();
    sets.unused.push_back(static_cast<u32>(sets.sets.size() - 1));
  }
  const u32 number = sets.unused.back();
  sets.unused.pop_back();
  sets.sets[number].push_back({cell.read, cell.readers});
  cell.read = Access{};
  cell.readers = number + 1;
}

}  // namespace

void record_read(const Accessor& a, Cell& cell, ReadSets& sets, const Access& now, bool global) {
  const u32 lane = 1u << now.lane;
  if (!cell.has_set()) {
    if (cell.read.time && joins(cell.read, cell.readers, now)) return join(cell.read, cell.readers, now);
    if (!cell.read.time || replaces(a, now, cell.read, cell.readers, global)) {
      cell.read = now;
      cell.readers = lane;
      return;
    }
    make_set(cell, sets);
  }
  auto& set = sets.sets[cell.readers - 1];
  bool joined = false;
  std::size_t kept = 0;
  for (ReadSets::Read& record : set) {
    if (!joined && joins(record, record.lanes, now)) {
      join(record, record.lanes, now);
      joined = true;
    } else if (record.component == now.component) {
      if (replaces(a, now, record, record.lanes, global)) continue;
      // What this lane read earlier comes before what it reads now; what others read stays.
      if (record.lanes & lane && record.time <= now.time && as_strict(now, record)) leave(record, record.lanes, now.lane);
      if (!record.lanes) continue;
    }
    set[kept++] = record;
  }
  set.resize(kept);
  if (!joined) set.push_back({now, lane});
  simplify(cell, sets);
}

const Access* read_non_coherently(const Cell& cell, const ReadSets& sets, u32 bytes) {
  const auto is = [&](const Access& read) { return read.non_coherent && read.bytes & bytes; };
  if (!cell.has_set()) return is(cell.read) ? &cell.read : nullptr;
  for (const ReadSets::Read& read : sets.sets[cell.readers - 1])
    if (is(read)) return &read;
  return nullptr;
}

void forget_some_reads(Cell& cell, ReadSets& sets, u32 bytes) {
  if (!cell.has_set()) {
    cell.read.bytes &= ~bytes;
    return;
  }
  auto& set = sets.sets[cell.readers - 1];
  for (ReadSets::Read& record : set) record.bytes &= ~bytes;
  std::erase_if(set, [](const ReadSets::Read& record) { return !record.bytes; });
  simplify(cell, sets);
}

}  // namespace tkpy::emulator
