// Instructions that exchange values between the lanes of a warp (PTX ISA 9.7.9.6, 9.7.13.7-15).
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

namespace {

u32 lowest(u32 mask) { return static_cast<u32>(std::countr_zero(mask)); }

// Runs `body(lanes)` for each set of lanes that share a member mask and are complete: all members that have not exited are
// here. Incomplete sets leave the group and wait at this instruction (PTX ISA 9.7.9.6: every thread of membermask must
// execute the same instruction before any resumes). `exchange`: values pass between the lanes (order.h, LaneTimes).
template <class Fn>
void for_member_sets(Exec& x, const Op& op, u32 mask, u32 members_slot, Fn body, bool exchange = true) {
  const u32* members = x.row<u32>(op.s[members_slot]);
  while (mask) {
    const u32 wanted = members[lowest(mask)];
    u32 lanes = 0;
    for (u32 rest = mask; rest; rest &= rest - 1)
      if (members[lowest(rest)] == wanted) lanes |= 1u << lowest(rest);
    mask &= ~lanes;
    const u32 outside = lanes & ~wanted;
    if (outside) {
      x.report(Check::invalid_instruction, op, lowest(outside), "executed by a lane that its member mask does not name");
      return;
    }
    if ((wanted & x.warp->alive & ~lanes) == 0) {
      if (x.checked && exchange) exchange_lanes(*x.warp, lanes);
      body(lanes);
      continue;
    }
    Wait wait;
    wait.kind = Wait::warp_sync;
    wait.id = wanted;
    x.split_waiting(lanes, x.pc - 1, wait);
  }
}

// The lanes that the warp had when the kernel began.
u32 started(const Exec& x) {
  const u64 threads = x.launch->config->block.count() - u64{kLanes} * x.warp->index;
  return threads >= kLanes ? kFullMask : (1u << threads) - 1;
}

}  // namespace

void exec_shfl(Exec& x, const Op& op, u32 mask) {
  for_member_sets(x, op, mask, 3, [&](u32 lanes) {
    const u32* b = x.row<u32>(op.s[1]);
    const u32* c = x.row<u32>(op.s[2]);
    u32 source[kLanes], result[kLanes], valid = 0;
    std::memcpy(source, x.row<u32>(op.s[0]), sizeof source);
    for (u32 rest = lanes; rest; rest &= rest - 1) {
      const u32 lane = lowest(rest);
      const i32 distance = b[lane] & 31;
      const u32 segment = c[lane] >> 8 & 31;
      const i32 limit = static_cast<i32>((lane & segment) | (c[lane] & 31 & ~segment));
      const i32 first = static_cast<i32>(lane & segment);
      i32 j = 0;
      bool in_range = false;
      switch (op.a) {
        case 0: j = static_cast<i32>(lane) - distance; in_range = j >= limit; break;
        case 1: j = static_cast<i32>(lane) + distance; in_range = j <= limit; break;
        case 2: j = static_cast<i32>(lane) ^ distance; in_range = j <= limit; break;
        default: j = first | (distance & ~static_cast<i32>(segment)); in_range = j <= limit;
      }
      if (!in_range) j = static_cast<i32>(lane);
      // Reading from a lane that does not take part gives an undefined value.
      result[lane] = lanes >> j & 1 ? source[j] : kPoison;
      valid |= static_cast<u32>(in_range) << lane;
    }
    u32* d = x.row<u32>(op.d[0]);
    for (u32 rest = lanes; rest; rest &= rest - 1) d[lowest(rest)] = result[lowest(rest)];
    if (op.d[1] != kNone) x.preds[op.d[1]] = (x.preds[op.d[1]] & ~lanes) | valid;
  });
}

void exec_vote(Exec& x, const Op& op, u32 mask) {  // a: 0 all, 1 any, 2 uni, 3 ballot
  const u32 predicate = x.pred(op.s[0]);
  for_member_sets(x, op, mask, 1, [&](u32 lanes) {
    const u32 yes = predicate & lanes;
    if (op.a == 3) {
      u32* d = x.row<u32>(op.d[0]);
      for (u32 rest = lanes; rest; rest &= rest - 1) d[lowest(rest)] = yes;
      return;
    }
    const bool t = op.a == 0 ? yes == lanes : op.a == 1 ? yes != 0 : yes == lanes || yes == 0;
    if (op.d[0] != kNone) x.preds[op.d[0]] = (x.preds[op.d[0]] & ~lanes) | (t ? lanes : 0);
  });
}

void exec_match(Exec& x, const Op& op, u32 mask) {
  for_member_sets(x, op, mask, 1, [&](u32 lanes) {
    u64 v[kLanes];
    for (u32 rest = lanes; rest; rest &= rest - 1) {
      const u32 lane = lowest(rest);
      v[lane] = op.b ? x.row<u64>(op.s[0])[lane] : x.row<u32>(op.s[0])[lane];
    }
    u32* d = x.row<u32>(op.d[0]);
    u32 agreed = 0;
    for (u32 rest = lanes; rest; rest &= rest - 1) {
      const u32 lane = lowest(rest);
      u32 same = 0;
      for (u32 other = lanes; other; other &= other - 1)
        if (v[lowest(other)] == v[lane]) same |= 1u << lowest(other);
      const bool all = same == lanes;
      d[lane] = op.a ? (all ? lanes : 0) : same;
      agreed |= static_cast<u32>(all) << lane;
    }
    if (op.d[1] != kNone) x.preds[op.d[1]] = (x.preds[op.d[1]] & ~lanes) | agreed;
  });
}

void exec_redux(Exec& x, const Op& op, u32 mask) {  // a: add min max and or xor; b: signed
  for_member_sets(x, op, mask, 1, [&](u32 lanes) {
    const u32* a = x.row<u32>(op.s[0]);
    u32 r = a[lowest(lanes)];
    for (u32 rest = lanes & (lanes - 1); rest; rest &= rest - 1) {
      const u32 v = a[lowest(rest)];
      const bool less = op.b ? static_cast<i32>(v) < static_cast<i32>(r) : v < r;
      switch (op.a) {
        case 0: r += v; break;
        case 1: r = less ? v : r; break;
        case 2: r = less ? r : v; break;
        case 3: r &= v; break;
        case 4: r |= v; break;
        default: r ^= v;
      }
    }
    u32* d = x.row<u32>(op.d[0]);
    for (u32 rest = lanes; rest; rest &= rest - 1) d[lowest(rest)] = r;
  });
}

void exec_elect(Exec& x, const Op& op, u32 mask) {  // the leader is the lowest lane, as on the machine
  for_member_sets(x, op, mask, 1, [&](u32 lanes) {
    const u32 leader = lowest(lanes);
    // It waits for all threads of its mask, where its like wait for those that have not exited (9.7.13.14 and 9.7.13.10).
    const u32 gone = x.row<u32>(op.s[1])[leader] & ~lanes & started(x);
    if (gone) {
      x.report(Check::invalid_instruction, op, leader, "waits for lane " + std::to_string(lowest(gone)) +
                                                           ", which its member mask names and which has left the kernel: elect.sync waits for all");
      return;
    }
    u32* d = x.row<u32>(op.d[0]);
    for (u32 rest = lanes; rest; rest &= rest - 1) d[lowest(rest)] = leader;
    if (op.d[1] != kNone) x.preds[op.d[1]] = (x.preds[op.d[1]] & ~lanes) | 1u << leader;
  }, false);
}

void exec_activemask(Exec& x, const Op& op, u32 mask) {
  u32* d = x.row<u32>(op.d[0]);
  for (u32 rest = mask; rest; rest &= rest - 1) d[lowest(rest)] = mask;
}

// bar.warp.sync may be met at different instructions; the members resume together.
void exec_warp_barrier(Exec& x, const Op& op, u32 mask) {
  if (x.resumed) return;
  const u32* members = x.row<u32>(op.s[1]);
  while (mask) {
    const u32 wanted = members[lowest(mask)];
    u32 lanes = 0;
    for (u32 rest = mask; rest; rest &= rest - 1)
      if (members[lowest(rest)] == wanted) lanes |= 1u << lowest(rest);
    mask &= ~lanes;
    if (lanes & ~wanted) {
      x.report(Check::invalid_instruction, op, lowest(lanes & ~wanted), "executed by a lane that its member mask does not name");
      return;
    }
    if ((wanted & x.warp->alive & ~lanes) == 0) {
      sync_lanes(*x.warp, lanes);
      continue;
    }
    Wait wait;
    wait.kind = Wait::warp_barrier;
    wait.id = wanted;
    x.split_waiting(lanes, x.pc - 1, wait);
  }
}

// Lane l holds elements 2(l%4), 2(l%4)+1 of row l/4 of an 8x8 matrix of 16-bit values (PTX ISA 9.7.14.5.16).
void exec_movmatrix(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, x.warp->alive)) return;
  u32 a[kLanes];
  std::memcpy(a, x.row<u32>(op.s[0]), sizeof a);
  auto element = [&](u32 row, u32 col) { return a[row * 4 + col / 2] >> (16 * (col % 2)) & 0xffff; };
  u32* d = x.row<u32>(op.d[0]);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = lowest(rest), row = lane / 4, col = 2 * (lane % 4);
    d[lane] = element(col, row) | element(col + 1, row) << 16;
  }
}

// For .aligned instructions: all lanes of the warp that have not exited, at this one instruction.
bool converge(Exec& x, const Op& op, u32 mask, u32 members) {
  (void)op;
  if ((members & x.warp->alive & ~mask) == 0) return true;
  Wait wait;
  wait.kind = Wait::warp_sync;
  wait.id = members & x.warp->alive;
  x.split_waiting(mask, x.pc - 1, wait);
  return false;
}

}  // namespace tkpy::emulator
