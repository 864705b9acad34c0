// mbarrier instructions (PTX ISA 9.7.13.15). The object's 64 bits and their rules are in tensor/mbarrier.h; here are
// addresses, waiting, and the order that arrivals and waits establish.
#include "tensor/mbarrier.h"

#include <bit>

#include "exec.h"

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
    if (plain) shared_access(x, op, *p.cta, lane, p.offset, 8, AccessKind::write, false, nullptr);
    else shared_access(x, op, *p.cta, lane, p.offset, 8, AccessKind::atomic, true, nullptr);
  }
  return p;
}

void arrive_clock(Exec& x, const Op& op, const Place& p, bool relaxed) {
  Warp& w = *x.warp;
  MbarrierClocks::Arrivals& mine = p.cta->mbarriers[p.offset].arrivals[w.id];
  ++mine.now;
  mine.site = x.site(op);
  join(p.cta->mbarriers[p.offset].arriving, relaxed ? w.fence_clock : w.clock);
  if (!relaxed) ++w.clock[w.id];
}

void phase_done(Cluster& c, Cta& cta, u32 offset) {
  MbarrierClocks& m = cta.mbarriers[offset];
  join(m.done, m.arriving);
  m.arriving.clear();
  for (auto& [warp, of] : m.arrivals) of.before += of.now, of.now = 0;
  ++c.progress;
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
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const Place p = locate(x, op, lane, false);
    if (!p.at) return give_up(x);
    if (!p.cta->mbarriers.contains(p.offset))
      return give_up(x, op, lane, "waits on shared address " + std::to_string(p.offset) + ", which no mbarrier.init has made an mbarrier");
    const u64 token = parity ? x.row<u32>(op.s[1])[lane] : x.row<u64>(op.s[1])[lane];
    bool done = false;
    std::string why;
    if (!finished(load(p.at), token, parity, &done, &why)) return give_up(x, op, lane, why);
    if (done) {
      result |= 1u << lane;
      if (!(op.b & 2)) join(x.warp->clock, p.cta->mbarriers[p.offset].done);
      continue;
    }
    // try_wait may come back without success at any time; it does so sometimes, and when nothing else can run.
    if (!blocking || x.timed_out || x.cluster->random(8) == 0) continue;
    Wait wait;
    wait.kind = Wait::mbarrier;
    wait.id = parity;
    wait.phase = token;
    wait.address = u64{p.cta->rank} << 32 | p.offset;
    x.split_waiting(1u << lane, x.pc - 1, wait);
    pass &= ~(1u << lane);
  }
  if (op.d[0] != kNone) x.preds[op.d[0]] = (x.preds[op.d[0]] & ~pass) | (result & pass);
  if (result && x.checked) sync_lanes(*x.warp, 0);
  x.event |= Exec::preempt;
  if (pass & ~result) x.event |= Exec::spin;
}

void one_arrival(Exec& x, const Op& op, u32 lane, const Place& p) {
  tensor::MbarrierArrival arrival;
  arrival.drop = op.b & 1;
  arrival.no_complete = op.b & 2;
  arrival.expects = op.b & 4;
  if (arrival.expects) arrival.expect_bytes = x.row<u32>(op.s[1])[lane];
  else if (op.c) arrival.count = x.row<u32>(op.s[1])[lane];
  u64 object = load(p.at), state = 0;
  bool completed = false;
  arrive_clock(x, op, p, op.b & 8);
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
  arrive_clock(x, op, p, false);
  Cluster* c = x.cluster;
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

void mbarrier_complete(Cluster& cluster, const SiteKey& site, const Warp& warp, Cta& cta, u32 offset, u32 bytes) {
  u8* at = cta.shared.data.data() + (offset - kSharedBase);
  u64 object = load(at);
  bool completed = false;
  const std::string why = tensor::mbarrier_complete_tx(object, bytes, &completed);
  if (!why.empty()) cluster.report_at(Check::mbarrier_misuse, site, warp, 0, why);
  std::memcpy(at, &object, 8);
  ++cluster.progress;
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
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const Place p = locate(x, op, lane, what == MbarrierOp::init || what == MbarrierOp::inval);
    if (!p.at) continue;
    if (what == MbarrierOp::arrive) {
      one_arrival(x, op, lane, p);
      continue;
    }
    if (what == MbarrierOp::cp_async_arrive) {
      arrive_after_copies(x, op, lane, p);
      continue;
    }
    u64 object = load(p.at);
    bool completed = false;
    std::string why;
    const u32 value = what == MbarrierOp::inval ? 0 : x.row<u32>(op.s[1])[lane];
    if (what == MbarrierOp::init) {
      why = tensor::mbarrier_init(object, value);
      p.cta->mbarriers[p.offset] = MbarrierClocks{};
    } else if (what == MbarrierOp::inval) {
      why = tensor::mbarrier_inval(object);
      p.cta->mbarriers.erase(p.offset);
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
