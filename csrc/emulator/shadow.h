// What memory remembers of accesses: FastTrack cells of four bytes, and how an access is checked against them.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include "order.h"

namespace tkpy::emulator {

enum class AccessKind : u8 { read, write, atomic };

struct Cell {
  Access write, other_write;  // the last write, and the one before it of bytes that the last left alone
  Access read;
  u32 readers = 0;            // its lanes. Where one record will not do for the reads `read` is empty, and this is 1 + their
                              // number in the read sets
  bool has_set() const { return readers && !read.time; }
};

// Reads of the cells that have several records. A read is remembered until the bytes are written, or read again by someone who
// comes after it in every respect: by the same lane, or, of other lanes, after they have met it.
struct ReadSets {
  struct Read : Access {
    u32 lanes = 0;
  };
  std::vector<std::vector<Read>> sets;
  std::vector<u32> unused;
};

// Checks one access to one cell and records it. `now` says who and which bytes; `same_value`: a write of what is already
// there, which is not reported against other writes (flags set by many threads). Calls race(before, before_writes,
// relation) for each earlier access that is not ordered before it.
template <class Race>
void touch(const Accessor& a, Cell& cell, ReadSets& sets, const Access& now, AccessKind kind, bool same_value, bool global, Race&& race);

// The record of an access by `a` to some bytes of a cell. Made of whole words (the fields of Access from the lowest bit up):
// field by field, each copy of it would wait for the narrow stores before it, which costs more than the check.
inline Access record_of(const Accessor& a, bool atomic, u32 bytes) {
  const u32 what = (a.site & 0xffffff) | bytes << 24 | u32{atomic} << 28 | u32{a.async} << 29 | u32{a.non_coherent} << 31;
  const u64 head = u64{what} << 32 | a.time;
  const u32 who = (a.component & 0xffff) | (a.warp_id & 0x7ff) << 16 | a.lane << 27;
  Access now;
  static_assert(sizeof now == sizeof head + sizeof who && std::is_trivially_copyable_v<Access>);
  std::memcpy(static_cast<void*>(&now), &head, sizeof head);
  std::memcpy(reinterpret_cast<u8*>(&now) + sizeof head, &who, sizeof who);
  return now;
}

// Bytes of the cell at `at` that lie in [first, last).
inline u32 cell_bytes(u64 at, u64 first, u64 last) {
  const u32 from = first > at ? static_cast<u32>(first - at) : 0, to = last < at + 4 ? static_cast<u32>(last - at) : 4;
  return ((1u << to) - 1) & ~((1u << from) - 1);
}

void record_read(const Accessor& a, Cell& cell, ReadSets& sets, const Access& now, bool global);
// A read of these bytes by ld.global.nc, if there is one.
const Access* read_non_coherently(const Cell& cell, const ReadSets& sets, u32 bytes);
void forget_some_reads(Cell& cell, ReadSets& sets, u32 bytes);

// These bytes have been written: whoever comes after the write comes after their reads.
inline void forget_reads(Cell& cell, ReadSets& sets, u32 bytes) {
  if (cell.read.bytes & ~bytes || cell.has_set()) return forget_some_reads(cell, sets, bytes);
  cell.read = Access{};
  cell.readers = 0;
}

template <class Race>
void touch(const Accessor& a, Cell& cell, ReadSets& sets, const Access& now, AccessKind kind, bool same_value, bool global, Race&& race) {
  bool unordered_write = false;
  for (const Access* w : {&cell.write, &cell.other_write}) {
    if (!(w->bytes & now.bytes) || (w->atomic && now.atomic)) continue;
    const Relation r = relate(a, *w, true, global);
    if (r == Relation::ordered) continue;
    if (kind == AccessKind::write && same_value && r == Relation::unordered) unordered_write = true;
    else race(*w, true, r);
  }
  if (kind == AccessKind::read) return record_read(a, cell, sets, now, global);
  auto against = [&](const Access& read, u32 lanes) {
    if (!(read.bytes & now.bytes) || (read.atomic && now.atomic)) return;
    if (relate(a, read, false, global, lanes) == Relation::unordered) race(read, false, Relation::unordered);
  };
  if (!cell.has_set()) against(cell.read, cell.readers);
  else for (const ReadSets::Read& read : sets.sets[cell.readers - 1]) against(read, read.lanes);
  if (unordered_write) return;  // the older one stays: others may be ordered after this and not after that
  cell.other_write.bytes &= ~now.bytes;
  if (cell.write.bytes & ~now.bytes) {
    cell.other_write = cell.write;
    cell.other_write.bytes &= ~now.bytes;
  }
  cell.write = now;
  forget_reads(cell, sets, now.bytes);
}

}  // namespace tkpy::emulator
