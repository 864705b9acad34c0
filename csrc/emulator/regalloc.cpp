// Virtual registers to rows: liveness over basic blocks, then a linear scan. PTX functions declare up to 131,000 registers
// but keep few alive; rows are what a warp's frame costs (128 bytes each).
//
// Rows are reused per class (32, 64, 128 bits), so a row never overlaps another partially; that also keeps lanes apart when
// diverged groups of a warp are at different places of one frame: a lane only ever touches its own column.
#include <algorithm>
#include <bit>
#include <queue>

#include "decode.h"

namespace tkpy::emulator {

namespace {

struct Interval {
  u32 start = kNone;
  u32 end = 0;
  void cover(u32 a, u32 b) {
    start = std::min(start, a);
    end = std::max(end, b);
  }
  bool used() const { return start != kNone; }
};

struct Blocks {
  std::vector<u32> first;       // op of each block; one past the last at the end
  std::vector<u32> of_op;
  std::vector<std::vector<u32>> successors;
};

Blocks find_blocks(const Function& f, const std::vector<Flow>& flow) {
  const u32 n = static_cast<u32>(f.ops.size());
  std::vector<bool> leader(n + 1, false);
  leader[0] = true;
  for (u32 i = 0; i < n; ++i) {
    if (flow[i] == Flow::next) continue;
    leader[i + 1] = true;
    if (flow[i] == Flow::branch) leader[static_cast<std::size_t>(f.ops[i].imm)] = true;
    if (flow[i] == Flow::table)
      for (u32 k = 0; k < f.ops[i].list_size; ++k) leader[f.lists[f.ops[i].list + k]] = true;
  }
  Blocks b;
  b.of_op.resize(n);
  for (u32 i = 0; i < n; ++i) {
    if (leader[i]) b.first.push_back(i);
    b.of_op[i] = static_cast<u32>(b.first.size() - 1);
  }
  b.first.push_back(n);
  b.successors.resize(b.first.size() - 1);
  for (u32 k = 0; k + 1 < b.first.size(); ++k) {
    const u32 last = b.first[k + 1] - 1;
    const Op& op = f.ops[last];
    auto& out = b.successors[k];
    const bool falls = flow[last] == Flow::next || op.guard != 0 || flow[last] == Flow::table;
    if (falls && k + 2 < b.first.size()) out.push_back(k + 1);
    if (flow[last] == Flow::branch) out.push_back(b.of_op[static_cast<std::size_t>(op.imm)]);
    if (flow[last] == Flow::table)
      for (u32 t = 0; t < op.list_size; ++t) out.push_back(b.of_op[f.lists[op.list + t]]);
  }
  return b;
}

// Live-in and live-out of the registers that cross blocks, as bit sets.
struct Liveness {
  std::vector<u32> global_id;   // vreg -> dense number, kNone for registers of one block
  std::vector<u32> vreg_of;
  u32 words = 0;
  std::vector<u64> in, out;
};

Liveness solve(const Function& f, const Blocks& b, const std::vector<Ref>& refs, u32 vregs) {
  Liveness l;
  const u32 blocks = static_cast<u32>(b.first.size() - 1);
  l.global_id.assign(vregs, kNone);
  std::vector<u32> home(vregs, kNone);
  std::vector<u32> killed_in(vregs, kNone);  // block in which an unconditional definition came first
  auto make_global = [&](u32 v) {
    if (l.global_id[v] != kNone) return;
    l.global_id[v] = static_cast<u32>(l.vreg_of.size());
    l.vreg_of.push_back(v);
  };
  // refs are in op order; within an op uses come before definitions (see patch_order in allocate()).
  for (const Ref& r : refs) {
    const u32 block = b.of_op[r.op];
    if (home[r.vreg] == kNone) home[r.vreg] = block;
    else if (home[r.vreg] != block) make_global(r.vreg);
    const bool kills = r.def && f.ops[r.op].guard == 0;
    if (kills) killed_in[r.vreg] = block;
    else if (killed_in[r.vreg] != block) make_global(r.vreg);
  }
  l.words = static_cast<u32>((l.vreg_of.size() + 63) / 64);
  std::vector<u64> use(std::size_t{blocks} * l.words), kill(use.size());
  l.in.resize(use.size());
  l.out.resize(use.size());
  for (const Ref& r : refs) {
    const u32 g = l.global_id[r.vreg];
    if (g == kNone) continue;
    const std::size_t word = std::size_t{b.of_op[r.op]} * l.words + g / 64;
    const u64 bit = u64{1} << (g % 64);
    // A guarded definition leaves other lanes' values alive: it reads as well as writes.
    if (r.def && f.ops[r.op].guard == 0) kill[word] |= bit & ~use[word];
    else if (!(kill[word] & bit)) use[word] |= bit;
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (u32 k = blocks; k-- > 0;) {
      const std::size_t at = std::size_t{k} * l.words;
      for (u32 s : b.successors[k])
        for (u32 w = 0; w < l.words; ++w) l.out[at + w] |= l.in[std::size_t{s} * l.words + w];
      for (u32 w = 0; w < l.words; ++w) {
        const u64 in = use[at + w] | (l.out[at + w] & ~kill[at + w]);
        changed |= in != l.in[at + w];
        l.in[at + w] = in;
      }
    }
  }
  return l;
}

}  // namespace

void Decoder::allocate() {
  std::stable_sort(refs_.begin(), refs_.end(), [](const Ref& a, const Ref& b) {
    return a.op != b.op ? a.op < b.op : a.def < b.def;
  });
  const u32 vregs = static_cast<u32>(vreg_bits_.size());
  const Blocks blocks = find_blocks(f_, flow_);
  const Liveness live = solve(f_, blocks, refs_, vregs);
  for (u32 g = 0; g < live.vreg_of.size(); ++g)
    if (live.in[g / 64] >> (g % 64) & 1) read_first_.push_back(live.vreg_of[g]);
  std::vector<Interval> interval(vregs);
  // Positions: op i reads at 2i and writes at 2i+1, but only lane arithmetic may write over what it reads: operations that
  // move data between lanes or write several registers read until 2i+2.
  for (const Ref& r : refs_) {
    const u32 at = 2 * r.op;
    const bool guarded = f_.ops[r.op].guard != 0;
    if (r.def) interval[r.vreg].cover(guarded ? at : at + 1, at + 2);
    else interval[r.vreg].cover(at, f_.ops[r.op].list_size || !f_.ops[r.op].in_place ? at + 2 : at);
  }
  for (u32 k = 0; k + 1 < blocks.first.size(); ++k) {
    for (u32 w = 0; w < live.words; ++w) {
      const std::size_t at = std::size_t{k} * live.words + w;
      for (u64 bits = live.in[at]; bits; bits &= bits - 1)
        interval[live.vreg_of[w * 64 + static_cast<u32>(std::countr_zero(bits))]].cover(2 * blocks.first[k], 2 * blocks.first[k]);
      for (u64 bits = live.out[at]; bits; bits &= bits - 1)
        interval[live.vreg_of[w * 64 + static_cast<u32>(std::countr_zero(bits))]].cover(2 * blocks.first[k + 1],
                                                                                        2 * blocks.first[k + 1]);
    }
  }
  const u32 last = static_cast<u32>(2 * f_.ops.size() + 2);
  for (u32 v : pinned_) interval[v].cover(0, last);
  for (const auto* list : {&ast_.params, &ast_.returns})
    for (const Param& p : *list)
      if (p.reg != kNone) interval[p.reg].cover(0, last);

  row_of_vreg_.assign(vregs, kNone);
  u32* const rows[3] = {&f_.rows32, &f_.rows64, &f_.rows128};
  for (u32 cls = 0; cls < 3; ++cls) {
    const u32 bits = 32u << cls;
    std::vector<u32> order;
    for (u32 v = 0; v < vregs; ++v)
      if (vreg_bits_[v] == bits && interval[v].used()) order.push_back(v);
    std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return interval[a].start < interval[b].start; });
    using Active = std::pair<u32, u32>;  // end, slot
    std::priority_queue<Active, std::vector<Active>, std::greater<>> active;
    std::vector<u32> free_slots;
    for (u32 v : order) {
      while (!active.empty() && active.top().first < interval[v].start) {
        free_slots.push_back(active.top().second);
        active.pop();
      }
      u32 slot;
      if (free_slots.empty()) slot = (*rows[cls])++;
      else slot = free_slots.back(), free_slots.pop_back();
      row_of_vreg_[v] = slot;
      active.push({interval[v].end, slot});
    }
  }
  for (u32 v = 0; v < vregs; ++v) {
    if (row_of_vreg_[v] == kNone) continue;
    if (vreg_bits_[v] == 64) row_of_vreg_[v] = f_.rows32 + 2 * row_of_vreg_[v];
    if (vreg_bits_[v] == 128) row_of_vreg_[v] = f_.rows32 + 2 * f_.rows64 + 4 * row_of_vreg_[v];
  }
}

void Decoder::patch() {
  for (const Ref& r : refs_) {
    const u32 row = row_of_vreg_[r.vreg];
    switch (r.field) {
      case Ref::s: f_.ops[r.op].s[r.index] = row; break;
      case Ref::d: f_.ops[r.op].d[r.index] = row; break;
      case Ref::list: f_.lists[r.index] = row; break;
      case Ref::call_param: f_.calls[r.call].params[r.index].reg_row = row; break;
      case Ref::call_return: f_.calls[r.call].returns[r.index].reg_row = row; break;
      case Ref::call_target: f_.calls[r.call].target_row = row; break;
    }
  }
  auto formals = [&](const std::vector<Param>& from, std::vector<Slot>& to) {
    for (const Param& p : from) {
      Slot slot;
      slot.bytes = static_cast<u32>(p.bytes());
      if (p.reg != kNone) {
        slot.reg_row = row_of_vreg_[p.reg];
        slot.wide = type_bits(p.type) == 64;
      } else if (p.symbol != kNone) {
        slot.frame_offset = static_cast<u32>(module_.symbol_frame[p.symbol]);
      }
      to.push_back(slot);
    }
  };
  if (!ast_.is_entry) {
    formals(ast_.params, f_.params);
    formals(ast_.returns, f_.returns);
  }
}

}  // namespace tkpy::emulator
