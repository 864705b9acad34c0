// mbarrier instructions (PTX ISA 9.7.13.15). The object's 64 bits and their rules are in tensor/mbarrier.h; here are
// addresses, waiting, and the order that arrivals and waits establish.
#include "tensor/mbarrier.h"

#include <bit>

#include "exec.h"
#include "race.h"

namespace tkpy::emulator {

namespace {

u64 load(const u8* at) {
  u64 v;
  std::memcpy(&v, at, 8);
  return v;
}

struct Place {
  Cta* cta = nullptr;
  u8* at = nullptr;
  u32 offset = 0;
};

bool initialised(const Cta& cta, u32 offset) {
  const auto m = cta.mbarriers.find(offset);
  return m != cta.mbarriers.end() && m->second.valid;
}

// Whoever uses an mbarrier comes after its init. Cells do not show it once others have used the object. Order is enough:
// the ISA has copies complete on mbarriers in the generic proxy (PTX ISA 9.3 on), so no proxy fence is asked for.
void check_init_order(const Accessor& a, const Cta& cta, u32 offset) {
  const auto m = cta.mbarriers.find(offset);
  if (m == cta.mbarriers.end() || relate(a, m->second.init, true, false) != Relation::unordered) return;
  const Access& init = m->second.init;
  a.cluster->report_pair(Check::shared_race, a.site, *a.warp, a.lane, init.site, *a.cluster->warps[init.warp], init.lane, [&] {
    return "the mbarrier at shared address " + std::to_string(offset) +
           " is used with nothing that orders it after its init; needed: a barrier, between CTAs a barrier.cluster with release and "
           "acquire, or fence.mbarrier_init before a relaxed one";
  });
}

// An operation on the object: strong, so it races only with the plain accesses of init and inval.
Place locate(Exec& x, const Op& op, u32 lane, bool plain) {
  const u64 address = op.f & 1 ? x.row<u64>(op.s[0])[lane] : x.row<u32>(op.s[0])[lane];
  Place p;
  p.offset = static_cast<u32>(address) & kSharedOffsetMask;
  p.at = shared_range(x, static_cast<u32>(address), 8, p.cta);
  if (!p.at) {
    x.report(Check::out_of_bounds, op, lane, "mbarrier at shared address " + std::to_string(p.offset) + ", outside shared memory");
  } else if (p.offset % 8) {
    x.report(Check::misaligned, op, lane, "mbarrier at shared address " + std::to_string(p.offset) + ", which is not a multiple of 8");
    p.at = nullptr;
  } else if (x.checked) {
    shared_access(x, op, *p.cta, lane, p.offset, 8, plain ? AccessKind::write : AccessKind::atomic, !plain, nullptr);
    if (!plain) check_init_order(accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op)), *p.cta, p.offset);
  }
  return p;
}

u64 place(const Place& p) { return u64{p.cta->rank} << 32 | p.offset; }

// Who has arrived, for the report of a deadlock.
void note_arrival(Exec& x, const Op& op, const Place& p) {
  MbarrierOrder::Arrivals& mine = p.cta->mbarriers[p.offset].arrivals[x.warp->id];
  ++mine.now;
  mine.site = x.site(op);
}

// A release covers what its lane has done. Where all lanes of a warp arrive at one mbarrier, and no phase ends before the last
// of them has, whoever sees one of the arrivals sees all: what the warp did is released once.
bool arrive_as_one(Exec& x, const Op& op, u32 mask) {
  if (x.warp->alive & ~mask) return false;
  const u32 first = static_cast<u32>(std::countr_zero(mask));
  auto address = [&](u32 lane) { return op.f & 1 ? x.row<u64>(op.s[0])[lane] : x.row<u32>(op.s[0])[lane]; };
  u64 count = 0;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    if (address(lane) != address(first)) return false;
    count += op.c && !(op.b & 4) ? x.row<u32>(op.s[1])[lane] : 1;
  }
  Cta* cta = nullptr;
  const u8* at = shared_range(x, static_cast<u32>(address(first)), 8, cta);
  return at && tensor::mbarrier_decode(load(at)).pending >= count;
}

void arrive_clock(Exec& x, const Op& op, const Place& p, u32 lanes, bool relaxed) {
  note_arrival(x, op, p);
  if (!x.checked) return;
  Clock& arriving = p.cta->mbarriers[p.offset].arriving;
  if (relaxed) publish_fenced(*x.warp, lanes, false, arriving);
  else publish(*x.warp, lanes, arriving);
}

void phase_done(Cluster& c, Cta& cta, u32 offset) {
  MbarrierOrder& m = cta.mbarriers[offset];
  join(m.done, m.arriving);
  m.arriving = Clock{};
  ++m.phases;
  for (auto& [warp, of] : m.arrivals) of.before += of.now, of.now = 0;
  ++c.progress;
}

// What lanes learn that have seen a phase end. Relaxed waits learn it at their next fence.
void acquire_phase(Exec& x, u32 lanes, const Place* places, bool relaxed) {
  if (!x.checked) return;
  while (lanes) {
    const Place& p = places[std::countr_zero(lanes)];
    u32 same = 0;
    for (u32 rest = lanes; rest; rest &= rest - 1) {
      const Place& q = places[std::countr_zero(rest)];
      if (q.cta == p.cta && q.offset == p.offset) same |= rest & (0u - rest);
    }
    const Clock& done = p.cta->mbarriers[p.offset].done;
    if (relaxed) observe_relaxed(*x.warp, same, done);
    else observe(*x.warp, same, done);
    lanes &= ~same;
  }
}

void init_order(Exec& x, const Op& op, u32 lane, const Place& p) {
  MbarrierOrder& m = p.cta->mbarriers[p.offset];
  m.valid = true;
  if (!x.checked) return;
  m.arriving = m.done = Clock{};
  m.init = record_of(accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op)), false, 0);
}

bool finished(u64 object, u64 token, bool parity, bool* done, std::string* why) {
  *why = parity ? tensor::mbarrier_test_parity(object, static_cast<u32>(token), done) : tensor::mbarrier_test_state(object, token, done);
  return why->empty();
}

// A wait that nothing can end: the program would spin for ever.
void give_up(Exec& x) {
  x.cluster->stopped = true;
  x.event |= Exec::stop;
}
void give_up(Exec& x, const Op& op, u32 lane, std::string why) {
  give_up(x);
  x.report(Check::mbarrier_misuse, op, lane, std::move(why));
}

void wait_on(Exec& x, const Op& op, u32 mask, bool blocking) {
  const bool parity = op.b & 1;
  u32 result = 0, pass = mask;
  Place places[kLanes];
  if (x.trace) x.trace->note({op.a});
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const Place p = places[lane] = locate(x, op, lane, false);
    if (!p.at) return give_up(x);
    if (!initialised(*p.cta, p.offset))
      return give_up(x, op, lane, "waits on shared address " + std::to_string(p.offset) + ", which no mbarrier.init has made an mbarrier");
    const u64 token = parity ? x.row<u32>(op.s[1])[lane] : x.row<u64>(op.s[1])[lane];
    bool done = false;
    std::string why;
    if (!finished(load(p.at), token, parity, &done, &why)) return give_up(x, op, lane, why);
    if (x.trace) x.trace->note({place(p), parity ? token & 1 : tensor::mbarrier_decode(token).parity, done});
    if (done) {
      result |= 1u << lane;
      continue;
    }
    // try_wait may come back without success at any time; it does so sometimes, and when nothing else can run.
    if (!blocking || x.timed_out || x.cluster->come_back_early()) continue;
    Wait wait;
    wait.kind = Wait::mbarrier;
    wait.id = parity;
    wait.phase = token;
    wait.address = u64{p.cta->rank} << 32 | p.offset;
    x.split_waiting(1u << lane, x.pc - 1, wait);
    pass &= ~(1u << lane);
  }
  if (op.d[0] != kNone) x.preds[op.d[0]] = (x.preds[op.d[0]] & ~pass) | (result & pass);
  acquire_phase(x, result, places, op.b & 2);
  x.event |= Exec::preempt;
  if (pass & ~result) x.event |= Exec::spin;
}

void one_arrival(Exec& x, const Op& op, u32 releases, u32 lane, const Place& p) {
  tensor::MbarrierArrival arrival;
  arrival.drop = op.b & 1;
  arrival.no_complete = op.b & 2;
  arrival.expects = op.b & 4;
  if (arrival.expects) arrival.expect_bytes = x.row<u32>(op.s[1])[lane];
  else if (op.c) arrival.count = x.row<u32>(op.s[1])[lane];
  u64 object = load(p.at), state = 0;
  bool completed = false;
  arrive_clock(x, op, p, releases, op.b & 8);
  if (x.trace) x.trace->note({place(p), arrival.count, arrival.expect_bytes});
  const std::string why = tensor::mbarrier_arrive(object, arrival, &state, &completed);
  if (!why.empty()) return x.report(Check::mbarrier_misuse, op, lane, why);
  std::memcpy(p.at, &object, 8);
  if (completed) phase_done(*x.cluster, *p.cta, p.offset);
  if (op.d[0] != kNone) x.row<u64>(op.d[0])[lane] = state;
}

// cp.async.mbarrier.arrive: one arrival when this lane's earlier cp.async have landed (PTX ISA 9.7.13.15.17). Without
// .noinc the pending count is raised first, so that the arrival is one more than init counted.
void arrive_after_copies(Exec& x, const Op& op, u32 lane, const Place& p) {
  std::vector<u64> before;
  for (const auto* list : {&x.warp->async[0].open, &x.warp->async[0].groups})
    for (const AsyncGroups::Entry& e : *list)
      if (e.lanes >> lane & 1) before.insert(before.end(), e.agents.begin(), e.agents.end());
  if (!(op.b & 16)) {
    tensor::MbarrierState s = tensor::mbarrier_decode(load(p.at));
    ++s.pending;
    const u64 object = tensor::mbarrier_encode(s);
    std::memcpy(p.at, &object, 8);
  }
  note_arrival(x, op, p);
  Cluster* c = x.cluster;
  Issue issue = c->issue(x, op, 1u << lane);
  if (x.checked && !before.empty()) raise(issue.start.seen, lane_copies(*x.warp, lane), x.warp->order.copies_issued);
  Cta* cta = p.cta;
  const u32 offset = p.offset;
  const SiteKey site = x.site(op);
  const Warp* warp = x.warp;
  c->add_agent(x, op, lane, [=](Cluster::Agent&) {
    if (!c->agents_done(before, false)) return false;
    u8* at = cta->shared.data.data() + (offset - kSharedBase);
    u64 object = load(at);
    bool completed = false;
    const std::string why = tensor::mbarrier_arrive(object, {}, nullptr, &completed);
    if (!why.empty()) c->report_at(Check::mbarrier_misuse, site, *warp, lane, why);
    std::memcpy(at, &object, 8);
    if (issue.checked) join(cta->mbarriers[offset].arriving, issue.start);
    if (completed) phase_done(*c, *cta, offset);
    return true;
  });
}

}  // namespace

bool mbarrier_ready(const Cluster& cluster, const Wait& wait) {
  const Cta& cta = cluster.ctas[static_cast<std::size_t>(wait.address >> 32)];
  bool done = false;
  std::string why;
  return !finished(load(cta.shared.data.data() + (static_cast<u32>(wait.address) - kSharedBase)), wait.phase, wait.id, &done, &why) || done;
}

Accessor landed_on(const Issue& issue, Cta& cta, u32 offset, bool async) {
  MbarrierOrder& m = cta.mbarriers[offset];
  if (!m.component) m.component = new_component(*issue.cluster, Component::mbarrier);
  return issue.as(m.component, m.phases + 1, async);
}

void mbarrier_complete(const Issue& issue, const SiteKey& site, Cta& cta, u32 offset, u32 bytes) {
  Cluster& cluster = *issue.cluster;
  u8* at = cta.shared.data.data() + (offset - kSharedBase);
  u64 object = load(at);
  bool completed = false;
  const std::string why = tensor::mbarrier_complete_tx(object, bytes, &completed);
  if (!why.empty()) cluster.report_at(Check::mbarrier_misuse, site, *issue.warp, issue.lane, why);
  std::memcpy(at, &object, 8);
  ++cluster.progress;
  if (issue.checked) {
    const Accessor a = landed_on(issue, cta, offset, false);
    check_init_order(a, cta, offset);
    visit(cta, a);
    Clock& arriving = cta.mbarriers[offset].arriving;
    join(arriving, issue.start);
    raise(arriving.seen, a.component, a.time);
  }
  if (completed) phase_done(cluster, cta, offset);
}

void exec_mbarrier(Exec& x, const Op& op, u32 mask) {
  const auto what = static_cast<MbarrierOp>(op.a);
  if (what == MbarrierOp::pending_count) {
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const u32 lane = static_cast<u32>(std::countr_zero(rest));
      u32 count = 0;
      const std::string why = tensor::mbarrier_pending_count(x.row<u64>(op.s[1])[lane], &count);
      if (!why.empty()) x.report(Check::mbarrier_misuse, op, lane, why);
      x.row<u32>(op.d[0])[lane] = count;
    }
    return;
  }
  if (what == MbarrierOp::test_wait || what == MbarrierOp::try_wait) return wait_on(x, op, mask, what == MbarrierOp::try_wait);
  if (x.trace) x.trace->note({op.a});
  const bool as_one = what == MbarrierOp::arrive && x.checked && arrive_as_one(x, op, mask);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const Place p = locate(x, op, lane, what == MbarrierOp::init || what == MbarrierOp::inval);
    if (!p.at) continue;
    if (what == MbarrierOp::arrive) {
      one_arrival(x, op, as_one ? mask : 1u << lane, lane, p);
      continue;
    }
    if (what == MbarrierOp::cp_async_arrive) {
      if (x.trace) x.trace->note({place(p), op.b & 16 ? u64{1} : u64{0}});
      arrive_after_copies(x, op, lane, p);
      continue;
    }
    u64 object = load(p.at);
    bool completed = false;
    std::string why;
    const u32 value = what == MbarrierOp::inval ? 0 : x.row<u32>(op.s[1])[lane];
    if (x.trace) x.trace->note({place(p), value});
    if (what == MbarrierOp::init) {
      why = tensor::mbarrier_init(object, value);
      init_order(x, op, lane, p);
    } else if (what == MbarrierOp::inval) {
      why = tensor::mbarrier_inval(object);
      p.cta->mbarriers[p.offset].valid = false;
    } else if (what == MbarrierOp::expect_tx) {
      why = tensor::mbarrier_expect_tx(object, value);
    } else {
      why = tensor::mbarrier_complete_tx(object, value, &completed);
    }
    if (!why.empty()) x.report(Check::mbarrier_misuse, op, lane, why);
    std::memcpy(p.at, &object, 8);
    if (completed) phase_done(*x.cluster, *p.cta, p.offset);
  }
  ++x.cluster->progress;
  x.yield_point();
}

}  // namespace tkpy::emulator
