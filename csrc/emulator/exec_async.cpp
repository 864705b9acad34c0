// Asynchronous copies: cp.async, cp.async.bulk, tensor-map copies and reductions, st.async (PTX ISA 9.7.9.24-27).
//
// Each is an agent that the scheduler runs at some time between issue and the wait that covers it. A bulk store reads its
// source in one step and writes its destination in another, so that reusing the source too early shows.
// Writes by agents are not in the race detector yet: their cells forget earlier accesses (docs/emulator.md).
#include <algorithm>
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

namespace {

u64 operand(const Exec& x, const Op& op, u32 slot, u32 lane) {
  return op.f >> slot & 1 ? x.row<u64>(op.s[slot])[lane] : x.row<u32>(op.s[slot])[lane];
}

// Marks shared bytes as written by an agent.
void landed(Cta& cta, u32 offset, u32 bytes) {
  SharedMemory& m = cta.shared;
  if (m.init.empty()) return;
  const u32 at = offset - kSharedBase;
  std::fill_n(m.init.begin() + at, bytes, u8{1});
  for (u32 cell = at / 4; cell <= (at + bytes - 1) / 4; ++cell) m.cells[cell] = Cell{};
}

struct SharedPlace {
  Cta* cta = nullptr;
  u32 offset = 0;
  u8* at = nullptr;
};

SharedPlace shared_place(Exec& x, const Op& op, u32 lane, u64 address, u64 bytes, const char* what) {
  SharedPlace p;
  p.offset = static_cast<u32>(address) & kSharedOffsetMask;
  p.at = shared_range(x, static_cast<u32>(address), bytes, p.cta);
  if (!p.at)
    x.report(Check::out_of_bounds, op, lane, std::string(what) + ": " + std::to_string(bytes) + " bytes at shared address " +
                                                 std::to_string(p.offset) + " are outside shared memory");
  return p;
}

u8* global_place(Exec& x, const Op& op, u32 lane, u64 address, u64 bytes, bool write, const char* what) {
  u8* at = global_range(x, address, bytes, write);
  if (!at)
    x.report(Check::out_of_bounds, op, lane, std::string(what) + ": " + std::to_string(bytes) + " bytes at global address " +
                                                 std::to_string(address) + " are in no buffer that was passed or allocated");
  return at;
}

// The CTAs a load goes to: this one's, or with .multicast those of a mask, each at the same offsets.
std::vector<Cta*> destinations(Exec& x, const Op& op, u32 lane, Cta* own) {
  if (!(op.b & 1)) return {own};
  std::vector<Cta*> out;
  const u32 mask = x.row<u32>(op.s[4])[lane] & 0xffff;
  for (u32 rank = 0; rank < 16; ++rank) {
    if (!(mask >> rank & 1)) continue;
    if (rank < x.cluster->ctas.size()) out.push_back(&x.cluster->ctas[rank]);
    else x.report(Check::out_of_bounds, op, lane, "multicast to rank " + std::to_string(rank) + ", which the cluster does not have");
  }
  return out;
}

void open_entry(Warp& w, u32 kind, u32 lanes, u64 agent) { w.async[kind].open.push_back({lanes, {agent}}); }

bool entry_done(const Cluster& c, const AsyncGroups::Entry& e, bool read_only) { return c.agents_done(e.agents, read_only); }

}  // namespace

bool async_ready(const Cluster& c, const Warp& w, const Wait& wait, u32 lanes) {
  const auto& groups = w.async[wait.kind == Wait::bulk].groups;
  u32 newer = 0;
  for (auto e = groups.rbegin(); e != groups.rend(); ++e) {
    if (!(e->lanes & lanes)) continue;
    if (newer++ < wait.id) continue;
    if (!entry_done(c, *e, wait.read_only)) return false;
  }
  return true;
}

// cp.async copies 4, 8 or 16 bytes a lane; a smaller source size fills the rest with zeros. f: bit 5 source size present
// in s[3]; a: bytes; b: source size is a predicate (ignore-src).
void exec_cp_async(Exec& x, const Op& op, u32 mask) {
  struct Piece {
    u8* to;
    const u8* from;
    u32 offset, bytes;
    Cta* cta;
    u32 lane;
  };
  std::vector<Piece> pieces;
  const u32 bytes = op.a;
  Addresses counted;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 to = operand(x, op, 0, lane), from = operand(x, op, 1, lane);
    u32 read = bytes;
    if (op.f & 32) read = op.b ? ((x.pred(op.s[3]) >> lane & 1) ? 0 : bytes) : std::min(bytes, x.row<u32>(op.s[3])[lane]);
    if (to % bytes || from % bytes) {
      x.report(Check::misaligned, op, lane, "cp.async of " + std::to_string(bytes) + " bytes between addresses that are not multiples of it");
      continue;
    }
    const SharedPlace p = shared_place(x, op, lane, to, bytes, "cp.async");
    const u8* source = read ? global_place(x, op, lane, from, read, false, "cp.async") : nullptr;
    if (!p.at || (read && !source)) continue;
    counted.value[lane] = static_cast<u32>(to);
    pieces.push_back({p.at, source, p.offset, read, p.cta, lane});
  }
  if (pieces.empty()) return;
  if (x.counting) {
    u32 good = 0;
    for (const Piece& p : pieces) good |= 1u << p.lane;
    x.count->bytes += u64{bytes} * pieces.size();
    count_shared(x, counted, good, bytes);
  }
  const SiteKey site = x.site(op);
  auto issuer = std::make_shared<Exec>(x);
  const u64 agent = x.cluster->add_agent(x, op, pieces[0].lane, [=](Cluster::Agent&) {
    // The copy is a write by the lane that issued it, at the time it lands (PTX ISA 9.7.9.25.3: a weak memory operation).
    Exec late = *issuer;
    late.late_site = &site;
    for (const Piece& p : pieces) {
      std::array<u8, 16> data{};
      if (p.from) std::memcpy(data.data(), p.from, p.bytes);
      if (late.checked) shared_access(late, Op{}, *p.cta, p.lane, p.offset, bytes, AccessKind::write, false, data.data());
      std::memcpy(p.to, data.data(), bytes);
    }
    return true;
  });
  open_entry(*x.warp, 0, mask, agent);
}

void exec_async_commit(Exec& x, const Op& op, u32 mask) {
  AsyncGroups& g = x.warp->async[op.a];
  AsyncGroups::Entry group{mask, {}};
  for (const AsyncGroups::Entry& e : g.open)
    if (e.lanes & mask) group.agents.insert(group.agents.end(), e.agents.begin(), e.agents.end());
  std::erase_if(g.open, [&](const AsyncGroups::Entry& e) { return (e.lanes & mask) != 0; });
  g.groups.push_back(std::move(group));
}

void exec_async_wait(Exec& x, const Op& op, u32 mask) {
  if (op.c) {  // cp.async.wait_all: commit, then wait for all
    Op commit = op;
    exec_async_commit(x, commit, mask);
  }
  Wait wait;
  wait.kind = op.a ? Wait::bulk : Wait::cp_async;
  wait.id = static_cast<u32>(op.imm);
  wait.read_only = op.b;
  if (!async_ready(*x.cluster, *x.warp, wait, mask)) return x.split_waiting(mask, x.pc - 1, wait);
  auto& groups = x.warp->async[op.a].groups;
  // Only from the oldest on: a wait counts the groups that were committed last, finished or not.
  groups.erase(groups.begin(), std::find_if(groups.begin(), groups.end(), [&](const AsyncGroups::Entry& e) {
                 return !entry_done(*x.cluster, e, false);
               }));
}

void exec_bulk_copy(Exec& x, const Op& op, u32 mask) {
  const auto kind = static_cast<BulkKind>(op.a);
  const bool reduces = op.c != 0;
  const auto reduction = static_cast<tensor::ReduceOp>(op.c - 1);
  const Type type = static_cast<Type>(op.e);
  Cluster* c = x.cluster;
  const SiteKey site = x.site(op);
  const Warp* warp = x.warp;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 to = operand(x, op, 0, lane), from = operand(x, op, 1, lane);
    const u32 bytes = x.row<u32>(op.s[3])[lane];
    if (const std::string why = tensor::bulk_reason(to, from, bytes); !why.empty()) {
      x.report(Check::misaligned, op, lane, "cp.async.bulk: " + why);
      continue;
    }
    if (x.counting) x.count->bytes += bytes;
    auto apply = [=](const u8* source, u8* target) {
      if (reduces) tensor::reduce_elements(reduction, type, source, target, bytes);
      else std::memcpy(target, source, bytes);
    };
    if (kind == BulkKind::shared_to_global) {
      const SharedPlace p = shared_place(x, op, lane, from, bytes, "cp.async.bulk");
      u8* target = global_place(x, op, lane, to, bytes, true, "cp.async.bulk");
      if (!p.at || !target) continue;
      auto buffer = std::make_shared<std::vector<u8>>();
      const u64 agent = c->add_agent(x, op, lane, [=](Cluster::Agent& a) {
        if (!a.has_read) {
          buffer->assign(p.at, p.at + bytes);
          a.has_read = true;
          return false;
        }
        apply(buffer->data(), target);
        return true;
      });
      open_entry(*x.warp, 1, 1u << lane, agent);
      continue;
    }
    const SharedPlace d = shared_place(x, op, lane, to, bytes, "cp.async.bulk");
    const SharedPlace m = shared_place(x, op, lane, operand(x, op, 2, lane), 8, "the mbarrier of cp.async.bulk");
    const u8* source = kind == BulkKind::global_to_shared ? global_place(x, op, lane, from, bytes, false, "cp.async.bulk")
                                                          : shared_place(x, op, lane, from, bytes, "cp.async.bulk").at;
    if (!d.at || !m.at || !source) continue;
    for (Cta* cta : destinations(x, op, lane, d.cta)) {
      Cta* barrier = op.b & 1 ? cta : m.cta;
      c->add_agent(x, op, lane, [=](Cluster::Agent&) {
        apply(source, cta->shared.data.data() + (d.offset - kSharedBase));
        landed(*cta, d.offset, bytes);
        mbarrier_complete(*c, site, *warp, *barrier, m.offset, bytes);
        return true;
      });
    }
  }
}

// ---- tensor maps -------------------------------------------------------------------------------------------------------

namespace {

bool read_map(Exec& x, const Op& op, u32 lane, u64 address, tensor::TensorMap* map) {
  if (address % 64) {
    x.report(Check::misaligned, op, lane, "a tensor map must lie on a multiple of 64 bytes");
    return false;
  }
  const u8* at = global_place(x, op, lane, address, tensor::kTensorMapBytes, false, "tensor map");
  if (!at) return false;
  const std::string why = tensor::decode_tensor_map(at, map);
  if (why.empty()) return true;
  x.report(Check::tensor_map, op, lane, why);
  return false;
}

// Every piece inside the tensor must be memory the kernel may touch.
bool runs_are_known(Exec& x, const Op& op, u32 lane, const tensor::TensorMap& map, const i32* at, u32 shared, bool write) {
  bool good = true;
  tensor::for_each_run(map, at, shared, [&](const tensor::TileRun& r) {
    if (r.inside && good) good = global_place(x, op, lane, r.global, r.bytes, write, "tile") != nullptr;
  });
  return good;
}

}  // namespace

void exec_bulk_tensor(Exec& x, const Op& op, u32 mask) {
  Cluster* c = x.cluster;
  const SiteKey site = x.site(op);
  const Warp* warp = x.warp;
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const bool load = op.a == 0;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    tensor::TensorMap map;
    if (!read_map(x, op, lane, operand(x, op, load ? 1 : 0, lane), &map)) continue;
    if (map.rank != op.list_size) {
      x.report(Check::tensor_map, op, lane, "a copy of " + std::to_string(op.list_size) + " dimensions with a tensor map of " + std::to_string(map.rank));
      continue;
    }
    std::array<i32, 5> at{};
    for (u32 i = 0; i < op.list_size; ++i) at[i] = static_cast<i32>(x.row<u32>(list[i])[lane]);
    const SharedPlace s = shared_place(x, op, lane, operand(x, op, load ? 0 : 1, lane), tensor::tile_span(map), "tile");
    if (!s.at) continue;
    std::string why = tensor::tile_reason(map, s.offset);
    const auto reduction = static_cast<tensor::ReduceOp>(op.c);
    if (why.empty() && op.a == 2) why = tensor::tile_reduce_reason(map, reduction);
    if (!why.empty()) {
      x.report(Check::tensor_map, op, lane, why);
      continue;
    }
    if (why = tensor::tile_doubt(map, s.offset); !why.empty()) x.report(Check::tensor_map, op, lane, why);
    if (!runs_are_known(x, op, lane, map, at.data(), s.offset, !load)) continue;
    const u32 bytes = tensor::tile_bytes(map);
    if (x.counting) x.count->bytes += bytes;
    auto memory = [](Cta& cta) {
      return tensor::SharedBytes{cta.shared.data.data(), kSharedBase, static_cast<u32>(cta.shared.data.size())};
    };
    if (!load) {
      // The source is copied in the first step, as a picture of the shared memory the tile spans.
      auto picture = std::make_shared<std::vector<u8>>();
      const u32 span = tensor::tile_span(map);
      const u64 agent = c->add_agent(x, op, lane, [=](Cluster::Agent& a) {
        if (!a.has_read) {
          picture->assign(s.at, s.at + span);
          a.has_read = true;
          return false;
        }
        const tensor::SharedBytes source{picture->data(), s.offset, span};
        if (op.a == 2) tensor::tile_reduce(map, reduction, at.data(), s.offset, source);
        else tensor::tile_store(map, at.data(), s.offset, source);
        return true;
      });
      open_entry(*x.warp, 1, 1u << lane, agent);
      continue;
    }
    const SharedPlace m = shared_place(x, op, lane, operand(x, op, 2, lane), 8, "the mbarrier of a tensor copy");
    if (!m.at) continue;
    for (Cta* cta : destinations(x, op, lane, s.cta)) {
      Cta* barrier = op.b & 1 ? cta : m.cta;
      c->add_agent(x, op, lane, [=](Cluster::Agent&) {
        tensor::tile_load(map, at.data(), s.offset, memory(*cta));
        landed(*cta, s.offset, tensor::tile_span(map));
        mbarrier_complete(*c, site, *warp, *barrier, m.offset, bytes);
        return true;
      });
    }
  }
}

// tensormap.replace.tile (PTX ISA 9.7.9.27): a field, c ordinal; s[3] value (b: an immediate in imm).
void exec_tensormap_replace(Exec& x, const Op& op, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 address = operand(x, op, 0, lane);
    u8* at = nullptr;
    if (op.e) {
      const SharedPlace p = shared_place(x, op, lane, address, tensor::kTensorMapBytes, "tensormap.replace");
      at = p.at;
      if (at && x.checked) std::fill_n(p.cta->shared.init.begin() + (p.offset - kSharedBase), tensor::kTensorMapBytes, u8{1});
    } else {
      at = global_place(x, op, lane, address, tensor::kTensorMapBytes, true, "tensormap.replace");
    }
    if (!at) continue;
    const std::string why = tensor::replace_tensor_map(at, static_cast<tensor::MapField>(op.a), op.c, operand(x, op, 3, lane));
    if (!why.empty()) x.report(Check::tensor_map, op, lane, why);
  }
}

void exec_tensormap_copy(Exec& x, const Op& op, u32 mask) {
  const u32 lane = static_cast<u32>(std::countr_zero(mask));  // .sync.aligned: the warp copies once
  u8* to = global_place(x, op, lane, operand(x, op, 0, lane), tensor::kTensorMapBytes, true, "tensormap.cp_fenceproxy");
  const SharedPlace from = shared_place(x, op, lane, operand(x, op, 1, lane), tensor::kTensorMapBytes, "tensormap.cp_fenceproxy");
  if (to && from.at) std::memcpy(to, from.at, tensor::kTensorMapBytes);
}

// st.async and red.async (PTX ISA 9.7.9.12, 9.7.13.6): a element bytes, list values, c reduction + 1, e type.
void exec_store_async(Exec& x, const Op& op, u32 mask) {
  Cluster* c = x.cluster;
  const SiteKey site = x.site(op);
  const Warp* warp = x.warp;
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u32 bytes = u32{op.a} * op.list_size;
    const SharedPlace d = shared_place(x, op, lane, operand(x, op, 0, lane), bytes, "st.async");
    const SharedPlace m = shared_place(x, op, lane, operand(x, op, 2, lane), 8, "the mbarrier of st.async");
    if (!d.at || !m.at) continue;
    std::array<u8, 32> data{};
    for (u32 k = 0; k < op.list_size; ++k) {
      const u64 v = op.a == 8 ? x.row<u64>(list[k])[lane] : x.row<u32>(list[k])[lane];
      std::memcpy(data.data() + k * op.a, &v, op.a);
    }
    const u32 reduction = op.c;
    const Type type = static_cast<Type>(op.e);
    c->add_agent(x, op, lane, [=](Cluster::Agent&) {
      if (reduction) tensor::reduce_elements(static_cast<tensor::ReduceOp>(reduction - 1), type, data.data(), d.at, bytes);
      else std::memcpy(d.at, data.data(), bytes);
      landed(*d.cta, d.offset, bytes);
      mbarrier_complete(*c, site, *warp, *m.cta, m.offset, bytes);
      return true;
    });
  }
}

}  // namespace tkpy::emulator
