// Asynchronous copies: cp.async, cp.async.bulk, tensor-map copies and reductions, st.async (PTX ISA 9.7.9.24-27).
//
// Each is an agent that the scheduler runs at some time between issue and the wait that covers it. A bulk store reads its
// source in one step and writes its destination in another, so that reusing the source too early shows. To the race
// detector an agent is a thread of its own: it starts after what its issuer has seen at issue, and what it does comes before
// those who wait for it (order.h). cp.async, st.async and red.async work in the generic proxy; bulk and tensor copies in the
// async proxy, and their completion is a proxy fence for those who observe it (9.7.9.25.2).
#include <algorithm>
#include <bit>

#include "exec.h"
#include "race.h"

namespace tkpy::emulator {

namespace {

u64 operand(const Exec& x, const Op& op, u32 slot, u32 lane) {
  return op.f >> slot & 1 ? x.row<u64>(op.s[slot])[lane] : x.row<u32>(op.s[slot])[lane];
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

// What a trace is told of a bulk copy; its mbarriers follow.
void note_copy(Exec& x, u64 direction, u64 bytes, const Trace::Found& found, u64 destinations) {
  x.trace->note({direction, bytes, found.l2, found.hbm, destinations});
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

// A bulk operation that completes through the groups of its thread: its place in that chain.
struct InGroup {
  u32 component = 0, time = 0;
};
InGroup join_bulk_groups(const Exec& x, u32 lane) {
  WarpOrder& o = x.warp->order;
  if (!x.checked) return {};
  if (!o.bulk_component[lane])
    o.bulk_component[lane] = new_component(*x.cluster, Component::bulk, 2);
  return {o.bulk_component[lane], ++o.bulk_issued[lane]};
}

void open_entry(Warp& w, u32 kind, u32 lanes, u64 agent, u32 component, u32 time) {
  w.async[kind].open.push_back({lanes, {agent}, {{lanes, component, time}}});
}

void read_source(const Issue& issue, const InGroup& g, const SharedPlace& p, u32 bytes) {
  if (issue.checked) touch_shared(issue.as(g.component, g.time, true), *p.cta, p.offset, bytes, AccessKind::read, false, false);
}

bool entry_done(const Cluster& c, const AsyncGroups::Entry& e, bool read_only) { return c.agents_done(e.agents, read_only); }

// Calls f(group, lanes) for each group that a wait covers, for these of its lanes, newest first. Every lane counts its own.
template <class Groups, class F>
void for_covered(Groups& groups, u32 allowed, u32 lanes, F&& f) {
  std::array<u32, kLanes> newer{};
  u32 covers = allowed ? 0 : lanes, alike = 0;  // lanes whose next group is covered; how many all have passed together
  bool together = true;
  for (auto e = groups.rbegin(); e != groups.rend(); ++e) {
    const u32 here = e->lanes & lanes;
    if (here & covers) f(*e, here & covers);
    if (!here || covers == lanes) continue;
    if (together && here == lanes) {
      if (++alike == allowed) covers = lanes;
      continue;
    }
    if (together) newer.fill(alike);
    together = false;
    for (u32 rest = here & ~covers; rest; rest &= rest - 1)
      if (++newer[std::countr_zero(rest)] == allowed) covers |= rest & (0u - rest);
  }
}

// The lanes come after the groups that their wait covers, which leave the list. Of those whose sources alone were waited for
// the newest stays: a chain's later time stands for the earlier ones.
void finish_groups(Exec& x, u32 mask, const Wait& wait) {
  Warp& w = *x.warp;
  auto& groups = w.async[wait.kind == Wait::bulk].groups;
  const AsyncGroups::Entry* newest = nullptr;
  for_covered(groups, wait.id, mask, [&](AsyncGroups::Entry& e, u32 lanes) {
    for (const AsyncGroups::Chain& chain : e.chains) {
      const u32 waited = chain.lanes & lanes;
      if (!x.checked || !waited) continue;
      if (wait.kind == Wait::cp_async) {
        wait_for_copies(w, chain.time, waited);
        continue;
      }
      if (!wait.read_only || !e.read) observe(w, waited, chain.component, chain.time);
      if (!wait.read_only) observe(w, waited, chain.component + 1, chain.time);
    }
    e.read = true;
    if (!newest) newest = &e;
    if (!wait.read_only) e.lanes &= ~lanes;
    else if (&e != newest && e.lanes == newest->lanes && entry_done(*x.cluster, e, false)) e.lanes = 0;
  });
  std::erase_if(groups, [](const AsyncGroups::Entry& e) { return e.lanes == 0; });
}

}  // namespace

bool async_ready(const Cluster& c, const Warp& w, const Wait& wait, u32 lanes) {
  bool done = true;
  for_covered(w.async[wait.kind == Wait::bulk].groups, wait.id, lanes,
              [&](const AsyncGroups::Entry& e, u32) { done = done && entry_done(c, e, wait.read_only); });
  return done;
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
    x.count->shared_bytes += u64{bytes} * pieces.size();
    for (const Piece& p : pieces) {
      x.count->global_bytes += p.bytes;
      x.launch->footprint->read(reinterpret_cast<u64>(p.from), p.bytes);
    }
    count_shared(x, counted, good, bytes);
    if (x.trace) {
      Trace::Found found;
      for (const Piece& p : pieces) x.trace->touch_range(reinterpret_cast<u64>(p.from), p.bytes, found);
      x.trace->note({found.l2, found.hbm});
    }
  }
  WarpOrder& o = x.warp->order;
  const u32 number = x.checked ? issue_copies(*x.warp, mask) : 0, component = o.copy_component;
  const LaneTimes lanes = o.lanes;
  const u32 now = o.now;
  std::shared_ptr<std::map<u32, Clock>> apart;  // what lanes have seen by themselves
  for (u32 rest = mask & o.apart_lanes; rest; rest &= rest - 1) {
    if (!apart) apart = std::make_shared<std::map<u32, Clock>>();
    (*apart)[static_cast<u32>(std::countr_zero(rest))] = *o.apart[std::countr_zero(rest)];
  }
  const Issue issue = x.cluster->issue(x, op, mask, true);
  const u64 agent = x.cluster->add_agent(x, op, pieces[0].lane, [=](Cluster::Agent&) {
    Accessor a = issue.as(component, number, false);
    a.lanes = &lanes, a.until = now;
    for (const Piece& p : pieces) {
      a.lane = p.lane;
      if (apart) a.apart = apart->contains(p.lane) ? &apart->at(p.lane) : nullptr;
      std::array<u8, 16> data{};
      if (p.from) std::memcpy(data.data(), p.from, p.bytes);
      if (p.from && issue.checked) touch_global(a, reinterpret_cast<u64>(p.from), p.bytes, AccessKind::read, false, nullptr);
      if (issue.checked) touch_shared(a, *p.cta, p.offset, bytes, AccessKind::write, false, false);
      std::memcpy(p.to, data.data(), bytes);
    }
    return true;
  });
  open_entry(*x.warp, 0, mask, agent, component, number);
}

void exec_async_commit(Exec& x, const Op& op, u32 mask) {
  AsyncGroups& g = x.warp->async[op.a];
  AsyncGroups::Entry group{mask, {}, {}};
  for (AsyncGroups::Entry& e : g.open)
    if (e.lanes & mask) {
      group.agents.insert(group.agents.end(), e.agents.begin(), e.agents.end());
      for (const AsyncGroups::Chain& chain : e.chains) group.chains.push_back({chain.lanes & mask, chain.component, chain.time});
      e.lanes &= ~mask;  // the others commit it by themselves
    }
  std::erase_if(g.open, [](const AsyncGroups::Entry& e) { return e.lanes == 0; });
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
  finish_groups(x, mask, wait);
}

void exec_bulk_copy(Exec& x, const Op& op, u32 mask) {
  const auto kind = static_cast<BulkKind>(op.a);
  const bool reduces = op.c != 0;
  const auto reduction = static_cast<tensor::ReduceOp>(op.c - 1);
  const Type type = static_cast<Type>(op.e);
  Cluster* c = x.cluster;
  const SiteKey site = x.site(op);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 to = operand(x, op, 0, lane), from = operand(x, op, 1, lane);
    const u32 bytes = x.row<u32>(op.s[3])[lane];
    if (const std::string why = tensor::bulk_reason(to, from, bytes); !why.empty()) {
      x.report(Check::misaligned, op, lane, "cp.async.bulk: " + why);
      continue;
    }
    if (x.counting) {
      x.count->shared_bytes += kind == BulkKind::shared_to_shared ? 2 * u64{bytes} : bytes;
      if (kind != BulkKind::shared_to_shared) x.count->global_bytes += bytes;
    }
    auto apply = [=](const u8* source, u8* target) {
      if (reduces) tensor::reduce_elements(reduction, type, source, target, bytes);
      else std::memcpy(target, source, bytes);
    };
    if (kind == BulkKind::shared_to_global) {
      const SharedPlace p = shared_place(x, op, lane, from, bytes, "cp.async.bulk");
      u8* target = global_place(x, op, lane, to, bytes, true, "cp.async.bulk");
      if (!p.at || !target) continue;
      if (x.counting && reduces) x.launch->footprint->read(to, bytes);
      if (x.counting) x.launch->footprint->write(to, bytes);
      if (x.trace) {
        Trace::Found found;
        x.trace->touch_range(to, bytes, found);
        note_copy(x, 1, bytes, found, 0);
      }
      auto buffer = std::make_shared<std::vector<u8>>();
      const Issue issue = c->issue(x, op, 1u << lane);
      const InGroup g = join_bulk_groups(x, lane);
      const u64 agent = c->add_agent(x, op, lane, [=](Cluster::Agent& a) {
        if (!a.has_read) {
          read_source(issue, g, p, bytes);
          buffer->assign(p.at, p.at + bytes);
          a.has_read = true;
          return false;
        }
        if (issue.checked)
          touch_global(issue.as(g.component + 1, g.time, true), to, bytes, reduces ? AccessKind::atomic : AccessKind::write, reduces, buffer->data());
        apply(buffer->data(), target);
        return true;
      });
      open_entry(*x.warp, 1, 1u << lane, agent, g.component, g.time);
      continue;
    }
    const SharedPlace d = shared_place(x, op, lane, to, bytes, "cp.async.bulk");
    const SharedPlace m = shared_place(x, op, lane, operand(x, op, 2, lane), 8, "the mbarrier of cp.async.bulk");
    SharedPlace s;
    if (kind == BulkKind::shared_to_shared) s = shared_place(x, op, lane, from, bytes, "cp.async.bulk");
    const u8* source = kind == BulkKind::global_to_shared ? global_place(x, op, lane, from, bytes, false, "cp.async.bulk") : s.at;
    if (!d.at || !m.at || !source) continue;
    if (x.counting && kind == BulkKind::global_to_shared) x.launch->footprint->read(from, bytes);
    const Issue issue = c->issue(x, op, 1u << lane);
    const std::vector<Cta*> targets = destinations(x, op, lane, d.cta);
    if (x.trace) {
      Trace::Found found;
      if (kind == BulkKind::global_to_shared) x.trace->touch_range(from, bytes, found);
      note_copy(x, kind == BulkKind::global_to_shared ? 0 : 2, bytes, found, targets.size());
    }
    for (Cta* cta : targets) {
      Cta* barrier = op.b & 1 ? cta : m.cta;
      if (x.trace) x.trace->note({u64{barrier->rank} << 32 | m.offset});
      c->add_agent(x, op, lane, [=](Cluster::Agent&) {
        if (issue.checked) {
          const Accessor a = landed_on(issue, *barrier, m.offset, true);
          if (!s.cta) touch_global(a, from, bytes, AccessKind::read, false, nullptr);
          else touch_shared(a, *s.cta, s.offset, bytes, AccessKind::read, false, false);
          touch_shared(a, *cta, d.offset, bytes, reduces ? AccessKind::atomic : AccessKind::write, reduces, false);
        }
        apply(source, cta->shared.data.data() + (d.offset - kSharedBase));
        mbarrier_complete(issue, site, *barrier, m.offset, bytes);
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

// The shared side of a tile: all of the box, whether or not the tensor holds it (stores leave out what it does not).
void touch_tile(const Accessor& a, Cta& cta, u32 shared, const tensor::TensorMap& map, const i32* at, AccessKind kind) {
  if (kind == AccessKind::write && tensor::tile_bytes(map) == tensor::tile_span(map))
    return touch_shared(a, cta, shared, tensor::tile_span(map), kind, false, false);
  tensor::for_each_run(map, at, shared, [&](const tensor::TileRun& r) {
    if (r.inside || kind == AccessKind::write) touch_shared(a, cta, r.shared, r.bytes, kind, false, false);
  });
}

// The global side.
void load_tile(const Accessor& a, const tensor::TensorMap& map, const i32* at, u32 shared) {
  tensor::for_each_run(map, at, shared, [&](const tensor::TileRun& r) {
    if (r.inside) touch_global(a, r.global, r.bytes, AccessKind::read, false, nullptr);
  });
}

void store_tile(const Accessor& a, const tensor::TensorMap& map, const i32* at, const tensor::SharedBytes& source, bool reduces) {
  tensor::for_each_run(map, at, source.base, [&](const tensor::TileRun& r) {
    if (r.inside) touch_global(a, r.global, r.bytes, reduces ? AccessKind::atomic : AccessKind::write, reduces, source.at(r.shared));
  });
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
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const bool load = op.a == 0;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    tensor::TensorMap map;
    const u64 map_address = operand(x, op, load ? 1 : 0, lane);
    if (!read_map(x, op, lane, map_address, &map)) continue;
    check_map_acquired(x, op, lane, map_address);
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
    if (x.counting) x.count->global_bytes += bytes, x.count->shared_bytes += bytes;
    Trace::Found found;
    if (x.counting)
      tensor::for_each_run(map, at.data(), s.offset, [&](const tensor::TileRun& r) {
        if (!r.inside) return;
        if (op.a != 1) x.launch->footprint->read(r.global, r.bytes);
        if (!load) x.launch->footprint->write(r.global, r.bytes);
        if (x.trace) x.trace->touch_range(r.global, r.bytes, found);
      });
    auto memory = [](Cta& cta) {
      return tensor::SharedBytes{cta.shared.data.data(), kSharedBase, static_cast<u32>(cta.shared.data.size())};
    };
    if (!load) {
      if (x.trace) note_copy(x, 1, bytes, found, 0);
      // The source is copied in the first step, as a picture of the shared memory the tile spans.
      auto picture = std::make_shared<std::vector<u8>>();
      const u32 span = tensor::tile_span(map);
      const Issue issue = c->issue(x, op, 1u << lane);
      const InGroup g = join_bulk_groups(x, lane);
      const u64 agent = c->add_agent(x, op, lane, [=](Cluster::Agent& a) {
        if (!a.has_read) {
          if (issue.checked) touch_tile(issue.as(g.component, g.time, true), *s.cta, s.offset, map, at.data(), AccessKind::read);
          picture->assign(s.at, s.at + span);
          a.has_read = true;
          return false;
        }
        const tensor::SharedBytes source{picture->data(), s.offset, span};
        if (issue.checked) store_tile(issue.as(g.component + 1, g.time, true), map, at.data(), source, op.a == 2);
        if (op.a == 2) tensor::tile_reduce(map, reduction, at.data(), s.offset, source);
        else tensor::tile_store(map, at.data(), s.offset, source);
        return true;
      });
      open_entry(*x.warp, 1, 1u << lane, agent, g.component, g.time);
      continue;
    }
    const SharedPlace m = shared_place(x, op, lane, operand(x, op, 2, lane), 8, "the mbarrier of a tensor copy");
    if (!m.at) continue;
    const Issue issue = c->issue(x, op, 1u << lane);
    const std::vector<Cta*> targets = destinations(x, op, lane, s.cta);
    if (x.trace) note_copy(x, 0, bytes, found, targets.size());
    for (Cta* cta : targets) {
      Cta* barrier = op.b & 1 ? cta : m.cta;
      if (x.trace) x.trace->note({u64{barrier->rank} << 32 | m.offset});
      c->add_agent(x, op, lane, [=](Cluster::Agent&) {
        if (issue.checked) {
          const Accessor a = landed_on(issue, *barrier, m.offset, true);
          load_tile(a, map, at.data(), s.offset);
          touch_tile(a, *cta, s.offset, map, at.data(), AccessKind::write);
        }
        tensor::tile_load(map, at.data(), s.offset, memory(*cta));
        mbarrier_complete(issue, site, *barrier, m.offset, bytes);
        return true;
      });
    }
  }
}

// A map in global memory is written as a whole (9.7.9.27).
void touch_map(Exec& x, const Op& op, u32 lane, u8* at) {
  if (x.checked && x.cluster->global)
    touch_global(accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op)), reinterpret_cast<u64>(at), tensor::kTensorMapBytes,
                 AccessKind::write, false, at);
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
    if (!op.e) touch_map(x, op, lane, at);
  }
}

void exec_tensormap_copy(Exec& x, const Op& op, u32 mask) {
  const u32 lane = static_cast<u32>(std::countr_zero(mask));  // .sync.aligned: the warp copies once
  u8* to = global_place(x, op, lane, operand(x, op, 0, lane), tensor::kTensorMapBytes, true, "tensormap.cp_fenceproxy");
  const SharedPlace from = shared_place(x, op, lane, operand(x, op, 1, lane), tensor::kTensorMapBytes, "tensormap.cp_fenceproxy");
  if (!to || !from.at) return;
  std::memcpy(to, from.at, tensor::kTensorMapBytes);
  touch_map(x, op, lane, to);
  if (x.checked) proxy_fence(*x.warp, mask, kFenceMaps);
}

// st.async and red.async (PTX ISA 9.7.9.12, 9.7.13.6): a element bytes, list values, c reduction + 1, e type.
void exec_store_async(Exec& x, const Op& op, u32 mask) {
  Cluster* c = x.cluster;
  const SiteKey site = x.site(op);
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
    const Issue issue = c->issue(x, op, 1u << lane);
    c->add_agent(x, op, lane, [=](Cluster::Agent&) {
      if (issue.checked)
        touch_shared(landed_on(issue, *m.cta, m.offset, false), *d.cta, d.offset, bytes, reduction ? AccessKind::atomic : AccessKind::write,
                     reduction != 0, false);
      if (reduction) tensor::reduce_elements(static_cast<tensor::ReduceOp>(reduction - 1), type, data.data(), d.at, bytes);
      else std::memcpy(d.at, data.data(), bytes);
      mbarrier_complete(issue, site, *m.cta, m.offset, bytes);
      return true;
    });
  }
}

}  // namespace tkpy::emulator
