// Loads, stores and addresses (PTX ISA 6.4, 9.7.9).
#include <algorithm>
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

namespace {

std::string hex(u64 value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

u64 lane_address(const Exec& x, const Op& op, u32 lane) {
  switch (static_cast<Base>(op.e)) {
    case Base::row32: return x.row<u32>(op.s[0])[lane] + static_cast<u64>(op.imm);
    case Base::row64: return x.row<u64>(op.s[0])[lane] + static_cast<u64>(op.imm);
    case Base::fixed: return static_cast<u64>(op.imm);
    case Base::param: return x.launch->param_address + static_cast<u64>(op.imm);
    case Base::frame: return x.frame->local_base + static_cast<u64>(op.imm);
  }
  return 0;
}

Space space_of(u64 address) {
  switch (address >> kWindowShift) {
    case 0: return Space::global;
    case 1: return Space::shared_cluster;
    case 2: return Space::local;
    default: return Space::reg;  // no memory there
  }
}

const char* verb(AccessKind kind) { return kind == AccessKind::read ? "read" : kind == AccessKind::write ? "write" : "atomic"; }

void report_range(Exec& x, const Op& op, u32 lane, u64 address, u32 bytes, AccessKind kind, Space space) {
  x.report(Check::out_of_bounds, op, lane,
           std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at " + space_name(space) + " address " +
               hex(address) + (space == Space::global ? ", which is in no buffer that was passed or allocated"
                                                      : ", outside the memory of that space"));
}

const Region* find_region(Exec& x, u64 address, u64 bytes) {
  const auto& regions = x.launch->regions;
  u32& hint = x.warp->region_hint;
  auto holds = [&](const Region& r) { return address >= r.lo && address <= r.hi && bytes <= r.hi - address; };
  if (hint < regions.size() && holds(regions[hint])) return &regions[hint];
  auto it = std::upper_bound(regions.begin(), regions.end(), address, [](u64 a, const Region& r) { return a < r.lo; });
  if (it == regions.begin()) return nullptr;
  --it;
  if (!holds(*it)) return nullptr;
  hint = static_cast<u32>(it - regions.begin());
  return &*it;
}

u8* resolve_local(Exec& x, const Op& op, u32 lane, u64 address, u32 bytes, AccessKind kind, bool strict) {
  Warp& w = *x.warp;
  const u64 offset = address & ((u64{1} << kWindowShift) - 1);
  const u64 limit = x.frame->local_base + u64{x.frame->fn->function->frame_bytes} + x.frame->extra_bytes[lane];
  if (offset + bytes > std::min<u64>(limit, w.local_stride)) {
    report_range(x, op, lane, address, bytes, kind, Space::local);
    return nullptr;
  }
  const u64 at = u64{lane} * w.local_stride + offset;
  if (x.checked) {
    u8* init = w.local_init.data() + at;
    if (kind == AccessKind::read && strict) {
      // Structures have padding that is copied but never written: only a wholly unwritten access is a finding.
      if (std::none_of(init, init + bytes, [](u8 b) { return b != 0; }))
        x.report(Check::uninitialised_read, op, lane, "read of " + std::to_string(bytes) + " bytes of local memory that were never written");
    } else if (kind != AccessKind::read) {
      std::fill_n(init, bytes, u8{1});
    }
  }
  return w.local.data() + at;
}

// The region that the access may touch, or null, reported.
const Region* allowed_region(Exec& x, const Op& op, u32 lane, u64 address, u32 bytes, AccessKind kind) {
  const Region* r = find_region(x, address, bytes);
  if (!r) {
    report_range(x, op, lane, address, bytes, kind, Space::global);
    return nullptr;
  }
  if (kind != AccessKind::read && !r->writable) {
    x.report(Check::out_of_bounds, op, lane, std::string(verb(kind)) + " at " + hex(address) + ", a read-only buffer");
    return nullptr;
  }
  if (r->heap && !r->heap->holds(address, bytes)) {
    x.report(Check::out_of_bounds, op, lane, std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at " + hex(address) +
                                                 " of the device heap, which malloc did not give or free took back");
    return nullptr;
  }
  return r;
}

u8* resolve_global(Exec& x, const Op& op, u32 lane, u64 address, u32 bytes, AccessKind kind, u32 flags) {
  const Region* r = allowed_region(x, op, lane, address, bytes, kind);
  if (!r) return nullptr;
  if (x.cluster->global && r->writable && !r->heap && kind == AccessKind::read) {
    Accessor a = accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op));
    a.non_coherent = flags & kNonCoherent;
    touch_global(a, address, bytes, kind, flags & kStrong, nullptr);
    if (a.non_coherent) check_never_written(a, address, bytes);
  }
  return reinterpret_cast<u8*>(address);
}

u8* resolve_shared(Exec& x, const Op& op, u32 lane, u64 address, u32 bytes, AccessKind kind, bool strong) {
  Cta* cta = nullptr;
  u8* at = shared_range(x, static_cast<u32>(address), bytes, cta);
  if (!at) {
    report_range(x, op, lane, static_cast<u32>(address), bytes, kind, Space::shared);
    return nullptr;
  }
  if (x.checked && kind == AccessKind::read)  // writes are checked when their data is known
    shared_access(x, op, *cta, lane, static_cast<u32>(address) & kSharedOffsetMask, bytes, kind, strong, nullptr);
  return at;
}

void count_global(Exec& x, const Addresses& a, u32 mask, u32 bytes, AccessKind kind, bool cached) {
  u64 sectors[2 * kLanes];
  u32 n = 0;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    for (u64 s = a.value[lane] / 32; s <= (a.value[lane] + bytes - 1) / 32; ++s) {
      if (n && sectors[n - 1] == s) continue;
      if (n < 2 * kLanes) sectors[n++] = s;
    }
  }
  std::sort(sectors, sectors + n);
  x.count->global_requests += 1;
  const u32 distinct = static_cast<u32>(std::unique(sectors, sectors + n) - sectors);
  x.count->global_sectors += distinct;
  for (u32 i = 0; i < distinct; ++i) {  // an atomic is memory's own read and write
    if (kind != AccessKind::write) x.launch->footprint->read(32 * sectors[i], 32);
    if (kind != AccessKind::read) x.launch->footprint->write(32 * sectors[i], 32);
  }
  if (!x.trace) return;
  const Trace::Found found = x.trace->touch(x.cta->linear, sectors, distinct, cached);
  x.trace->note({found.l1, found.l2, found.hbm});
}

template <class T>
void read_elements(Exec& x, const Op& op, u32 mask, const Addresses& a) {
  using S = std::make_signed_t<T>;
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const u32 reg_bits = op.f >> 16 & 0xff;
  const bool sign = op.f & kSigned;
  const u32 keep = reg_bits >= 32 ? kFullMask : (1u << reg_bits) - 1;
  for (u32 k = 0; k < op.b; ++k) {
    if (list[k] == kNone) continue;
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      T value;
      std::memcpy(&value, a.where[lane] + k * sizeof(T), sizeof(T));
      if (op.f & kWide) x.row<u64>(list[k])[lane] = sign ? static_cast<u64>(i64{static_cast<S>(value)}) : u64{value};
      else x.row<u32>(list[k])[lane] = (sign ? static_cast<u32>(static_cast<i64>(static_cast<S>(value))) : static_cast<u32>(value)) & keep;
    }
  }
}

// .b128: one element, in a register of two rows of 64 bits.
void read_wide(Exec& x, const Op& op, u32 mask, const Addresses& a) {
  const u32 row = x.frame->fn->function->lists[op.list];
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    std::memcpy(&x.row<u64>(row)[lane], a.where[lane], 8);
    std::memcpy(&x.row<u64>(row + 2)[lane], a.where[lane] + 8, 8);
  }
}

template <class T>
void write_elements(Exec& x, const Op& op, u32 lane, const u32* list, u8* to) {
  for (u32 k = 0; k < op.b; ++k) {
    const T value = op.f & kWide ? static_cast<T>(x.row<u64>(list[k])[lane]) : static_cast<T>(x.row<u32>(list[k])[lane]);
    std::memcpy(to + k * sizeof(T), &value, sizeof(T));
  }
}

bool is_shared(const Op& op, u64 address) {
  const Space s = static_cast<Space>(op.c);
  return s == Space::shared || s == Space::shared_cluster ||
         (s == Space::generic && space_of(address) == Space::shared_cluster);
}

bool is_global(const Op& op, u64 address) {
  const Space s = static_cast<Space>(op.c);
  return s == Space::global || (s == Space::generic && space_of(address) == Space::global);
}

}  // namespace

// Blocks of the device heap go from thread to thread, in an order that malloc and free keep: they are not checked for races.
bool in_heap(Exec& x, u64 address) {
  const Region* r = find_region(x, address, 1);
  return r && r->heap;
}

u8* global_range(Exec& x, u64 address, u64 bytes, bool write) {
  const Region* r = find_region(x, address, bytes);
  if (r && r->heap && !r->heap->holds(address, bytes)) return nullptr;
  return r && (!write || r->writable) ? reinterpret_cast<u8*>(address) : nullptr;
}

u8* shared_range(Exec& x, u32 address, u64 bytes, Cta*& cta) {
  const u32 rank = address >> kRankShift;
  cta = x.cta;
  if (rank) {
    if (rank > x.cluster->ctas.size()) return nullptr;
    cta = &x.cluster->ctas[rank - 1];
  }
  const u64 offset = address & kSharedOffsetMask;
  if (offset < kSharedBase || offset + bytes > u64{kSharedBase} + cta->shared.data.size()) return nullptr;
  return cta->shared.data.data() + (offset - kSharedBase);
}

u64 shared_location(const Cta& cta, u32 offset) { return kSharedWindow | u64{cta.rank} << 32 | (offset & ~3u); }

u32 resolve(Exec& x, const Op& op, u32 mask, u32 bytes, AccessKind kind, u32 flags, Addresses& out) {
  const Space declared = static_cast<Space>(op.c);
  u32 good = mask;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 address = lane_address(x, op, lane);
    out.value[lane] = address;
    if (address & (bytes - 1)) {
      x.report(Check::misaligned, op, lane, std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at " +
                                                hex(address) + ", which is not a multiple of its size");
      good &= ~(1u << lane);
      continue;
    }
    const Space space = declared == Space::generic ? space_of(address) : declared;
    u8* at = nullptr;
    switch (space) {
      case Space::global:
      case Space::constant: at = resolve_global(x, op, lane, address, bytes, kind, flags); break;
      case Space::param:
        if (static_cast<u64>(op.imm) <= x.launch->param_bytes && bytes <= x.launch->param_bytes - static_cast<u64>(op.imm)) at = reinterpret_cast<u8*>(address);
        else report_range(x, op, lane, address, bytes, kind, Space::param);
        break;
      case Space::shared:
      case Space::shared_cluster:
        at = resolve_shared(x, op, lane, address, bytes, kind, flags & kStrong);
        break;
      case Space::local: at = resolve_local(x, op, lane, address, bytes, kind, true); break;
      case Space::frame: at = resolve_local(x, op, lane, address, bytes, kind, false); break;
      default: report_range(x, op, lane, address, bytes, kind, Space::generic);
    }
    out.where[lane] = at;
    if (!at) good &= ~(1u << lane);
  }
  if (x.counting && good) {
    const u32 first = static_cast<u32>(std::countr_zero(good));
    const u64 moved = u64{bytes} * static_cast<u32>(std::popcount(good));
    const Space space = declared == Space::generic ? space_of(out.value[first]) : declared;
    if (is_shared(op, out.value[first])) {
      x.count->shared_bytes += moved;
      count_shared(x, out, good, bytes);
      Cta* cta = nullptr;
      shared_range(x, static_cast<u32>(out.value[first]), bytes, cta);
      if (x.trace && cta != x.cta) x.trace->note({moved});
    } else if (space == Space::global && out.value[first] - x.launch->param_address >= x.launch->param_bytes) {
      x.count->global_bytes += moved;
      count_global(x, out, good, bytes, kind, kind == AccessKind::read && !(flags & kStrong));
    } else if (space == Space::local) {
      x.count->local_bytes += moved;
    }
  }
  return good;
}

// Bank conflicts: 32 banks of 4 bytes. 8-byte accesses are served per half warp, 16-byte ones per quarter; each pass costs
// as many wavefronts as the busiest bank has distinct words.
void count_shared(Exec& x, const Addresses& a, u32 mask, u32 bytes) {
  const u32 lanes_per_pass = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  const u32 words_each = bytes <= 4 ? 1 : bytes / 4;
  u32 wavefronts = 0, passes = 0;
  for (u32 base = 0; base < kLanes; base += lanes_per_pass) {
    u32 words[kLanes], next[kLanes], head[32], depth[32] = {};
    std::fill(head, head + 32, kNone);
    u32 n = 0, worst = 0;
    for (u32 lane = base; lane < base + lanes_per_pass; ++lane) {
      if (!(mask >> lane & 1)) continue;
      for (u32 k = 0; k < words_each; ++k) {
        const u32 word = static_cast<u32>(a.value[lane]) / 4 + k;
        const u32 bank = word % 32;
        u32 at = head[bank];
        while (at != kNone && words[at] != word) at = next[at];
        if (at != kNone) continue;
        words[n] = word;
        next[n] = head[bank];
        head[bank] = n++;
        worst = std::max(worst, ++depth[bank]);
      }
    }
    wavefronts += worst;
    passes += worst > 0;
  }
  x.count->shared_requests += 1;
  x.count->shared_wavefronts += wavefronts;
  x.count->bank_conflicts += wavefronts - passes;
}

void exec_load(Exec& x, const Op& op, u32 mask) {
  Addresses a;
  const u32 bytes = u32{op.a} * op.b;
  mask = resolve(x, op, mask, bytes, AccessKind::read, op.f, a);
  switch (op.a) {
    case 1: read_elements<u8>(x, op, mask, a); break;
    case 2: read_elements<u16>(x, op, mask, a); break;
    case 4: read_elements<u32>(x, op, mask, a); break;
    case 8: read_elements<u64>(x, op, mask, a); break;
    case 16: read_wide(x, op, mask, a); break;
  }
  if ((op.f & kStrong) && x.checked) {
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      u64 location = a.value[lane] & ~u64{3};
      Cta* cta = nullptr;
      if (is_shared(op, location) && shared_range(x, static_cast<u32>(location), 4, cta))
        location = shared_location(*cta, static_cast<u32>(location) & kSharedOffsetMask);
      acquire_from(x, location, op.f, 1u << lane);
    }
  }
}

void exec_store(Exec& x, const Op& op, u32 mask) {
  Addresses a;
  const u32 bytes = u32{op.a} * op.b;
  mask = resolve(x, op, mask, bytes, AccessKind::write, op.f, a);
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    alignas(8) u8 data[64];
    switch (op.a) {
      case 1: write_elements<u8>(x, op, lane, list, data); break;
      case 2: write_elements<u16>(x, op, lane, list, data); break;
      case 4: write_elements<u32>(x, op, lane, list, data); break;
      case 8: write_elements<u64>(x, op, lane, list, data); break;
      case 16:
        std::memcpy(data, &x.row<u64>(list[0])[lane], 8);
        std::memcpy(data + 8, &x.row<u64>(list[0] + 2)[lane], 8);
        break;
    }
    if (x.checked && is_shared(op, a.value[lane])) {
      Cta* cta = nullptr;
      shared_range(x, static_cast<u32>(a.value[lane]), bytes, cta);
      const u32 offset = static_cast<u32>(a.value[lane]) & kSharedOffsetMask;
      shared_access(x, op, *cta, lane, offset, bytes, AccessKind::write, op.f & kStrong, data);
      if (op.f & kStrong) release_to(x, shared_location(*cta, offset), op.f, 1u << lane);
    } else if (x.checked && is_global(op, a.value[lane])) {
      if (x.cluster->global && !in_heap(x, a.value[lane]))
        touch_global(accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op)), a.value[lane], bytes, AccessKind::write, op.f & kStrong, data);
      if (op.f & kStrong) release_to(x, a.value[lane] & ~u64{3}, op.f, 1u << lane);
    }
    std::memcpy(a.where[lane], data, bytes);
  }
  x.cluster->progress += (op.f & kStrong) != 0;
}

void exec_address_of(Exec& x, const Op& op, u32 mask) {
  const u64 value = static_cast<u64>(op.imm) + (op.c ? x.launch->param_address : x.frame->local_base);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    if (op.a) x.row<u64>(op.d[0])[lane] = value;
    else x.row<u32>(op.d[0])[lane] = static_cast<u32>(value);
  }
}

namespace {

u32 frame_end(const Frame& f) { return f.local_base + f.fn->function->frame_bytes; }

u64 read_row(const Exec& x, u32 row, bool wide, u32 lane) { return wide ? x.row<u64>(row)[lane] : x.row<u32>(row)[lane]; }
void write_row(const Exec& x, u32 row, bool wide, u32 lane, u64 value) {
  if (wide) x.row<u64>(row)[lane] = value;
  else x.row<u32>(row)[lane] = static_cast<u32>(value);
}

}  // namespace

// alloca (PTX ISA 9.7.16.3): the call's stack frame grows, each lane's by what it asks for, until the call returns.
void exec_alloca(Exec& x, const Op& op, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u32 base = frame_end(*x.frame);
    const u64 start = align_up(u64{base} + x.frame->extra_bytes[lane], static_cast<u64>(op.imm));
    const u64 bytes = read_row(x, op.s[0], op.a, lane), end = start + std::min<u64>(bytes, u64{1} << 32);
    if (end > kFullMask || !grow_local(*x.warp, static_cast<u32>(end), x.checked)) {
      x.report(Check::stack_overflow, op, lane, "alloca of " + std::to_string(bytes) + " bytes: the thread's stack would pass 512 KiB");
      return;
    }
    x.frame->extra_bytes[lane] = static_cast<u32>(end) - base;
    write_row(x, op.d[0], op.a, lane, start);
  }
}

// stacksave and stackrestore: what alloca took since is given back.
void exec_stack(Exec& x, const Op& op, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u32 base = frame_end(*x.frame);
    u32& extra = x.frame->extra_bytes[lane];
    if (!op.b) {
      write_row(x, op.d[0], op.a, lane, u64{base} + extra);
      continue;
    }
    const u64 to = read_row(x, op.s[0], op.a, lane);
    if (to >= base && to <= u64{base} + extra) extra = static_cast<u32>(to) - base;
    else x.report(Check::stack_overflow, op, lane, "stackrestore of an address that no stacksave of this call gave");
  }
}

// cvta (PTX ISA 9.7.9.20). Global, const and kernel-parameter addresses are their own generic addresses.
void exec_cvta(Exec& x, const Op& op, u32 mask) {
  const Space space = static_cast<Space>(op.c);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    u64 v = op.e ? x.row<u64>(op.s[0])[lane] : x.row<u32>(op.s[0])[lane];
    if (space == Space::shared || space == Space::shared_cluster) {
      v = op.a ? v & 0xffffffffu : kSharedWindow | (v & 0xffffffffu);
      // A shared::cluster address of this CTA is the shared::cta address without its rank.
      if (op.a && space == Space::shared && static_cast<u32>(v) >> kRankShift == x.cta->rank + 1) v &= kSharedOffsetMask;
    } else if (space == Space::local) {
      v = op.a ? v & ((u64{1} << kWindowShift) - 1) : kLocalWindow | v;
    }
    if (op.e) x.row<u64>(op.d[0])[lane] = v;
    else x.row<u32>(op.d[0])[lane] = static_cast<u32>(v);
  }
}

void exec_isspacep(Exec& x, const Op& op, u32 mask) {
  const Space space = static_cast<Space>(op.c);
  u32 result = 0;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 v = op.a ? x.row<u64>(op.s[0])[lane] : x.row<u32>(op.s[0])[lane];
    const u32 rank = static_cast<u32>(v) >> kRankShift;
    const bool in_param = v >= x.launch->param_address && v < x.launch->param_address + x.launch->param_bytes;
    bool yes = false;
    switch (space) {
      case Space::global: yes = v >> kWindowShift == 0 && !in_param; break;
      case Space::shared: yes = v >> kWindowShift == 1 && (rank == 0 || rank == x.cta->rank + 1); break;
      case Space::shared_cluster: yes = v >> kWindowShift == 1; break;
      case Space::local: yes = v >> kWindowShift == 2; break;
      case Space::param: yes = in_param; break;
      case Space::constant: {
        const Region* r = v >> kWindowShift == 0 ? find_region(x, v, 1) : nullptr;
        yes = r && !r->writable && !in_param;
        break;
      }
      default: break;
    }
    result |= static_cast<u32>(yes) << lane;
  }
  x.preds[op.d[0]] = (x.preds[op.d[0]] & ~mask) | result;
}

// mapa (PTX ISA 9.7.9.23): the same variable in another CTA of the cluster.
void exec_mapa(Exec& x, const Op& op, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u32 rank = x.row<u32>(op.s[1])[lane];
    if (rank >= x.cluster->ctas.size())
      x.report(Check::out_of_bounds, op, lane, "mapa to rank " + std::to_string(rank) + " of a cluster of " +
                                                   std::to_string(x.cluster->ctas.size()) + " CTAs");
    const u32 high = (std::min<u32>(rank, 254) + 1) << kRankShift;
    if (op.a) {
      const u64 v = x.row<u64>(op.s[0])[lane];
      x.row<u64>(op.d[0])[lane] = (static_cast<Space>(op.c) == Space::generic ? kSharedWindow : 0) | high | (v & kSharedOffsetMask);
    } else {
      x.row<u32>(op.d[0])[lane] = high | (x.row<u32>(op.s[0])[lane] & kSharedOffsetMask);
    }
  }
}

void exec_getctarank(Exec& x, const Op& op, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u32 v = op.a ? static_cast<u32>(x.row<u64>(op.s[0])[lane]) : x.row<u32>(op.s[0])[lane];
    x.row<u32>(op.d[0])[lane] = v >> kRankShift ? (v >> kRankShift) - 1 : x.cta->rank;
  }
}

// discard writes an indeterminate value (PTX ISA 9.7.9.17): here the poison. applypriority (9.7.9.16) changes no value. Both
// take a line of global memory.
void exec_cache_line(Exec& x, const Op& op, u32 mask) {
  constexpr u32 kLine = 128;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 address = lane_address(x, op, lane);
    if (address % kLine) {
      x.report(Check::misaligned, op, lane, "a line of 128 bytes at " + hex(address) + ", which is not a multiple of 128");
    } else if (allowed_region(x, op, lane, address, kLine, op.a ? AccessKind::write : AccessKind::read) && op.a) {
      if (x.cluster->global)
        touch_global(accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op)), address, kLine, AccessKind::write, false, nullptr);
      for (u32 i = 0; i < kLine; i += 4) std::memcpy(reinterpret_cast<u8*>(address) + i, &kPoison, 4);
    }
  }
}

void exec_nothing(Exec&, const Op&, u32) {}

}  // namespace tkpy::emulator
