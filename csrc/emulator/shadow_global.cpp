#include "shadow_global.h"

#include <utility>

#include "race.h"

namespace tkpy::emulator {

namespace {

constexpr u32 byte_mask(u32 bytes) {
  return (bytes & 1 ? 0xffu : 0) | (bytes & 2 ? 0xff00u : 0) | (bytes & 4 ? 0xff0000u : 0) | (bytes & 8 ? 0xff000000u : 0);
}

const char* noun(bool write, bool atomic) { return atomic ? "atomic" : write ? "write" : "read"; }

std::string describe(u64 address, AccessKind kind, const Access& now, const Access& before, bool before_writes) {
  char text[96];
  std::snprintf(text, sizeof text, "%s and %s of global address 0x%llx", noun(kind != AccessKind::read, now.atomic),
                noun(before_writes, before.atomic), static_cast<unsigned long long>(address));
  return text;
}

void report(const Accessor& a, u64 address, AccessKind kind, const Access& now, const Access& before, bool before_writes, Relation relation) {
  const Warp& other = *a.cluster->warps[before.warp];
  const bool fence = relation == Relation::unfenced;
  a.cluster->report_pair(fence ? Check::proxy_fence : Check::global_race, a.site, *a.warp, a.lane, before.site, other, before.lane, [&] {
    const std::string what = describe(address, kind, now, before, before_writes);
    if (fence)
      return what + ": the first is in the generic proxy, the second in the async proxy, and no fence.proxy.async lies between them";
    return what + " with nothing between them that orders them; needed: " + remedy(a, before, true);
  });
}

constexpr const char* kAcross =
    " by two CTAs with nothing between them that orders them; needed: another kernel, or a release by one and an acquire by the "
    "other at gpu scope (a fence and an atomic)";

constexpr const char* kUnfenced =
    " by two CTAs: the first is in the generic proxy, the second in the async proxy, and no fence.proxy.async lies between them; the "
    "writer executes it before it releases, or the issuer after it has acquired";
constexpr const char* kWrittenAfter =
    ", a read through the non-coherent cache: its data are taken to stay as they are while the kernel runs, so that the load may be "
    "made late or again, whatever orders the two; needed: a plain load";

Site site_of(const Launch& launch, u32 cluster, const Access& access) {
  const u32 warps = static_cast<u32>((launch.config->block.count() + kLanes - 1) / kLanes);
  return make_site(launch, launch.linked->site(access.site), cta_linear(launch, cluster, access.warp / warps), access.warp % warps, access.lane);
}

// What ld.global.nc has read is written.
[[gnu::noinline, gnu::cold]] void report_written_after(const Accessor& a, u64 address, AccessKind kind, const Access& now, const Access& read) {
  a.cluster->report_pair(Check::non_coherent_read, a.site, *a.warp, a.lane, read.site, *a.cluster->warps[read.warp], read.lane,
                         [&] { return describe(address, kind, now, read, false) + kWrittenAfter; });
}

}  // namespace

bool Written::same(const Written& o) const {
  const u32 both = bytes & o.bytes;
  return !((varied | o.varied) & both) && ((value ^ o.value) & byte_mask(both)) == 0;
}

void Written::add(const Written& o) {
  const u32 both = bytes & o.bytes, changed = value ^ o.value;
  for (u32 i = 0; i < 4; ++i)
    if (both >> i & 1 && changed & byte_mask(1u << i)) varied |= static_cast<u8>(1u << i);
  varied |= o.varied;
  value = (value & ~byte_mask(o.bytes)) | (o.value & byte_mask(o.bytes));
  bytes |= o.bytes;
}

void touch_global(const Accessor& a, u64 address, u64 bytes, AccessKind kind, bool strong, const u8* incoming) {
  Cluster& c = *a.cluster;
  if (!c.global) return;
  for (u64 at = address & ~u64{3}; at < address + bytes; at += 4) {
    const Access now = record_of(a, strong, cell_bytes(at, address, address + bytes));
    Written written;
    if (kind != AccessKind::read) {
      written.bytes = static_cast<u8>(now.bytes);
      if (!incoming || kind == AccessKind::atomic) written.varied = written.bytes;
      else for (u32 i = 0; i < 4; ++i)
        if (now.bytes >> i & 1) written.value |= u32{incoming[at + i - address]} << (8 * i);
    }
    GlobalCell& cell = c.global->cells.at(at);
    // Against the last values written, not all of them: an older write of another value has been compared already.
    const bool same = kind == AccessKind::write && !written.varied && ((cell.written.value ^ written.value) & byte_mask(now.bytes & cell.written.bytes)) == 0;
    if (kind != AccessKind::read && (cell.read.non_coherent || cell.has_set())) [[unlikely]]
      if (const Access* read = read_non_coherently(cell, c.global->read_sets, now.bytes)) report_written_after(a, at, kind, now, *read);
    touch(a, cell, c.global->read_sets, now, kind, same, true,
          [&](const Access& before, bool writes, Relation r) { report(a, at, kind, now, before, writes, r); });
    if (kind != AccessKind::read) cell.written.add(written);
    if (c.launch->across) c.launch->across->access(a, at, now, kind, written);
  }
}

void check_never_written(const Accessor& a, u64 address, u64 bytes) {
  Cluster& c = *a.cluster;
  if (!(c.launch->config->checks >> static_cast<u32>(Check::non_coherent_read) & 1)) return;
  constexpr const char* kWhy =
      ", which this kernel has written: the non-coherent cache may hold the old value, whatever orders the two; needed: a plain load";
  for (u64 at = address & ~u64{3}; at < address + bytes; at += 4) {
    const u32 touched = cell_bytes(at, address, address + bytes);
    const GlobalCell& cell = c.global->cells.at(at);
    for (const Access* w : {&cell.write, &cell.other_write}) {
      if (!w->time || !(w->bytes & touched)) continue;
      c.report_pair(Check::non_coherent_read, a.site, *a.warp, a.lane, w->site, *c.warps[w->warp], w->lane, [&] {
        return describe(at, AccessKind::read, Access{}, *w, true) + kWhy;
      });
      return;
    }
    u32 by = 0;
    const Access* abroad = c.launch->across ? c.launch->across->written_abroad(c.linear, at, touched, by) : nullptr;
    if (!abroad) continue;
    Finding f;
    f.check = Check::non_coherent_read;
    f.message = describe(at, AccessKind::read, Access{}, *abroad, true) + kWhy;
    f.site = make_site(*c.launch, c.launch->linked->site(a.site), a.warp->cta->linear, a.warp->index, a.lane);
    f.has_other = true;
    f.other = site_of(*c.launch, by, *abroad);
    c.add_finding(std::move(f), "non-coherent/" + std::to_string(a.site) + "/" + std::to_string(abroad->site));
    return;
  }
}

const Access* AcrossClusters::written_abroad(u32 cluster, u64 address, u32 bytes, u32& by) {
  const AcrossCell& cell = cells_.at(address);
  by = cell.write_cluster;
  return cell.write.time && by != cluster && (cell.write.bytes & bytes) ? &cell.write : nullptr;
}

template <class Relate, class Race>
void AcrossClusters::touch(u32 cluster, AcrossCell& cell, const Access& now, AccessKind kind, const Written& written, Relate&& relate, Race&& race) {
  auto check = [&](const Access& before, u32 other, bool writes) {
    if (!before.time || other == cluster || !(before.bytes & now.bytes) || (before.atomic && now.atomic)) return;
    const Relation r = relate(before, other, writes);
    if (r != Relation::ordered || (kind != AccessKind::read && before.non_coherent)) race(before, other, writes, r);
  };
  if (kind != AccessKind::write || !cell.written.same(written)) check(cell.write, cell.write_cluster, true);
  if (kind == AccessKind::read) {
    u32 slot = 0;
    while (slot < 2 && cell.read[slot].time && cell.read_cluster[slot] != cluster) ++slot;
    if (slot == 2) slot = relate(cell.read[0], cell.read_cluster[0], false) == Relation::ordered ? 0 : 1;
    cell.read[slot] = now;
    cell.read_cluster[slot] = cluster;
    return;
  }
  for (u32 i = 0; i < 2; ++i) check(cell.read[i], cell.read_cluster[i], false);
  cell.written.add(written);
  cell.write = now;
  cell.write_cluster = cluster;
}

std::optional<Finding> AcrossClusters::finding(const Launch& launch, u32 cluster, const Pair& p) {
  const auto [check, why] = p.relation == Relation::unordered  ? std::pair{Check::global_race, kAcross}
                            : p.relation == Relation::unfenced ? std::pair{Check::proxy_fence, kUnfenced}
                                                               : std::pair{Check::non_coherent_read, kWrittenAfter};
  if (!(launch.config->checks >> static_cast<u32>(check) & 1)) return std::nullopt;
  if (std::exchange(reported_[u64{p.now.site} << 32 | p.before.site], true)) return std::nullopt;
  Finding f;
  f.check = check;
  f.message = describe(p.address, p.kind, p.now, p.before, p.writes) + why;
  f.site = site_of(launch, cluster, p.now);
  f.has_other = true;
  f.other = site_of(launch, p.other, p.before);
  return f;
}

void AcrossClusters::add(const Launch& launch, u32 cluster, GlobalMemory& memory, std::vector<Finding>& findings) {
  if (!(launch.config->checks >> static_cast<u32>(Check::global_race) & 1)) return;
  memory.cells.for_each([&](u64 address, GlobalCell& own) {
    auto add_one = [&](const Access& now, AccessKind kind) {
      if (!now.time) return;
      touch(cluster, cells_.at(address), now, kind, kind == AccessKind::read ? Written{} : own.written,
            [](const Access&, u32, bool) { return Relation::unordered; },
            [&](const Access& before, u32 other, bool writes, Relation r) {
              if (auto f = finding(launch, cluster, {address, kind, now, before, other, writes, r})) findings.push_back(std::move(*f));
            });
    };
    add_one(own.read, AccessKind::read);
    if (own.has_set())
      for (const Access& read : memory.read_sets.sets[own.readers - 1]) add_one(read, AccessKind::read);
    add_one(own.other_write, own.other_write.atomic ? AccessKind::atomic : AccessKind::write);
    add_one(own.write, own.write.atomic ? AccessKind::atomic : AccessKind::write);
  });
}

void AcrossClusters::access(const Accessor& a, u64 address, const Access& now, AccessKind kind, const Written& written) {
  Cluster& c = *a.cluster;
  auto comes_after = [&](const Access& before, u32 other, Times Abroad::*which) {
    for (const Clock* clock : {a.clock, a.apart}) {
      const Abroad* abroad = clock ? clock->of(other) : nullptr;
      if (!abroad) continue;
      if (covers(abroad->*which, before.component, before.time)) return true;
      const bool copy = before.component != before.warp && !before.async;  // cp.async
      if (before.component != before.warp && !copy) continue;
      const auto lane = c.launch->lane_components.find(lane_key(other, before.warp, before.lane) | (copy ? kCopiesOfLane : 0));
      if (lane != c.launch->lane_components.end() && !before.several && covers(abroad->*which, lane->second, before.time)) return true;
    }
    return false;
  };
  auto relate = [&](const Access& before, u32 other, bool writes) {
    if (!before.time || other == c.linear) return Relation::ordered;
    if (!comes_after(before, other, &Abroad::seen)) return Relation::unordered;
    return !a.async || !writes || before.async || comes_after(before, other, &Abroad::fenced) ? Relation::ordered : Relation::unfenced;
  };
  touch(c.linear, cells_.at(address), now, kind, written, relate, [&](const Access& before, u32 other, bool writes, Relation r) {
    if (auto f = finding(*c.launch, c.linear, {address, kind, now, before, other, writes, r}))
      c.add_finding(std::move(*f), "across/" + std::to_string(now.site) + "/" + std::to_string(before.site));
  });
}

}  // namespace tkpy::emulator
