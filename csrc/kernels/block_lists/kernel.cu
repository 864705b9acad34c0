// Lists of blocks from scores of blocks, or from a table of them: which blocks each row of queries sees, fully or in part,
// and the same by keys; nothing is known on the host, sizes of outputs are bounds.
//   seen      scores: the `most` highest of a row; of equal ones the first, NaN above all    table: what is not 0
//   causal    only blocks with a permitted pair compete; those at the diagonal are seen in part. The diagonal crosses blocks
//             in at most two ways, (seq_k - seq_q) mod block before a block's corner or a block further: two element masks
// block_lists_rows     a warp a row of queries; block 256. The threshold of a row by radix: four histograms of 8 bits in shared
//                      memory (integers, so in any order), then one pass in the order of keys; leaves `state` for the columns
// block_lists_columns  a CTA 32 columns of keys, a lane each; 8 warps share the rows: counts first, then places
// The same call, the same lists. Lists ascend.
// precision  scores are compared as fp32, exactly      limits  fewer than 2^30 rows of blocks
// cost  bytes 6 reads of a row of scores (L1), state written once and read twice
#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::block_lists {

using namespace tk;

constexpr int kWarps = 8;

// What the diagonal makes of a block: 0 not seen, 1 seen, 2 and 3 seen in part.
TK_DEVICE int kind(const Params& p, int q, int k) {
  if (!p.causal) return 1;
  const int offset = p.seq_k - p.seq_q, q_first = q * p.block + offset, k_first = k * p.block;
  const int q_last = min(q * p.block + p.block, p.seq_q) - 1 + offset, k_last = min(k_first + p.block, p.seq_k) - 1;
  if (k_first > q_last) return 0;
  return k_last <= q_first ? 1 : q_first >= k_first ? 2 : 3;
}

// In the order of scores; 0 is below all.
TK_DEVICE u32 rank(float score) {
  const u32 bits = __float_as_uint(score + 0.0f);  // minus zero equals zero
  return score != score ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Keys of a row that are above `threshold` are seen, and the first `ties` that equal it.
struct Choice {
  u32 threshold;
  int ties;
};

struct Rows {
  const Params& p;
  const int q;
  const long long row;  // among all

  TK_DEVICE u32 ranked(int k) const {
    return k < p.k_blocks && kind(p, q, k) != 0 ? rank(p.scores[row * p.k_blocks + k]) : 0u;
  }

  // One digit of 8 bits: of the keys that begin as `choice.threshold` does, the one that holds the last of `ties`.
  TK_DEVICE void refine(Choice& choice, u32 begun, int shift, int* bins) const {
    for (int i = lane_index(); i < 256; i += 32) bins[i] = 0;
    __syncwarp();
    for (int k = lane_index(); k < p.k_blocks; k += 32) {
      const u32 key = ranked(k);
      if (key != 0 && (key & begun) == choice.threshold) atomicAdd(bins + (key >> shift & 255), 1);
    }
    __syncwarp();
    int own = 0;
    for (int i = 0; i < 8; ++i) own += bins[8 * lane_index() + i];
    int above = 0;  // keys of the lanes beyond
    for (int lane = 31; lane >= 0; --lane) {
      const int other = __shfl_sync(0xffffffffu, own, lane);
      if (lane > lane_index()) above += other;
    }
    const u32 here = __ballot_sync(0xffffffffu, above < choice.ties && choice.ties <= above + own);
    int digit = 8 * lane_index() + 7;
    if (here >> lane_index() & 1)
      for (; above + bins[digit] < choice.ties; --digit) above += bins[digit];
    const int lane = __ffs(static_cast<int>(here)) - 1;
    choice.threshold |= static_cast<u32>(__shfl_sync(0xffffffffu, digit, lane)) << shift;
    choice.ties -= __shfl_sync(0xffffffffu, above, lane);
    __syncwarp();
  }

  TK_DEVICE Choice choose(int* bins) const {
    int visible = 0;
    for (int base = 0; base < p.k_blocks; base += 32)
      visible += __popc(__ballot_sync(0xffffffffu, ranked(base + lane_index()) != 0));
    if (visible <= p.most || p.most == 0) return {p.most == 0 ? 0xffffffffu : 0u, 0};
    Choice choice = {0, p.most};
    u32 begun = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      refine(choice, begun, shift, bins);
      begun |= 255u << shift;
    }
    return choice;
  }

  TK_DEVICE void write(const Choice& choice) const {
    const u32 before = (1u << lane_index()) - 1;
    const OutLists& out = p.by_queries;
    int fulls = 0, partials = 0, ties = choice.ties;
    for (int base = 0; base < p.k_blocks; base += 32) {
      const int k = base + lane_index();
      const bool inside = k < p.k_blocks;
      const u32 key = p.scores ? ranked(k) : 0u;
      const u32 equal = __ballot_sync(0xffffffffu, key != 0 && key == choice.threshold);
      const bool tied = (equal >> lane_index() & 1) && __popc(equal & before) < ties;
      ties -= min(ties, __popc(equal));
      const bool seen = inside && (p.scores ? key > choice.threshold || tied : p.table[row * p.k_blocks + k] != 0);
      const int state = seen ? kind(p, q, k) : 0;
      const u32 full = __ballot_sync(0xffffffffu, state == 1), partial = __ballot_sync(0xffffffffu, state > 1);
      if (inside) p.state[row * p.k_blocks + k] = static_cast<unsigned char>(state);
      if (state == 1) out.full_index[row * out.most_full + fulls + __popc(full & before)] = k;
      if (state > 1) {
        const long long at = row * out.most_partial + partials + __popc(partial & before);
        out.partial_index[at] = k;
        out.partial_slot[at] = state - 2;
      }
      fulls += __popc(full);
      partials += __popc(partial);
    }
    if (lane_index() != 0) return;
    out.full_count[row] = fulls;
    out.partial_count[row] = partials;
  }
};

// Query i sees key j of a block at the diagonal if j <= i + reach.
TK_DEVICE void write_masks(const Params& p) {
  const int pitch = p.block / 8, shift = ((p.seq_k - p.seq_q) % p.block + p.block) % p.block;
  for (int at = static_cast<int>(threadIdx.x); at < 2 * p.block * pitch; at += 32 * kWarps) {
    const int slot = at / (p.block * pitch), i = at / pitch % p.block, j = at % pitch * 8;
    const int seen = min(max(i + shift - slot * p.block - j + 1, 0), 8);
    p.masks[at] = static_cast<unsigned char>((1 << seen) - 1);
  }
}

TK_DEVICE void write_columns(const Params& p, int pair, int k) {
  __shared__ int full_counts[kWarps][32], partial_counts[kWarps][32];
  const int share = (p.q_blocks + kWarps - 1) / kWarps, first = warp_index() * share, end = min(first + share, p.q_blocks);
  const bool inside = k < p.k_blocks;
  const unsigned char* states = p.state + static_cast<long long>(pair) * p.q_blocks * p.k_blocks + k;
  int fulls = 0, partials = 0;
  if (inside)
    for (int q = first; q < end; ++q) {
      const int state = states[static_cast<long long>(q) * p.k_blocks];
      fulls += state == 1;
      partials += state > 1;
    }
  full_counts[warp_index()][lane_index()] = fulls;
  partial_counts[warp_index()][lane_index()] = partials;
  __syncthreads();
  if (!inside) return;
  const OutLists& out = p.by_keys;
  const long long column = static_cast<long long>(pair) * p.k_blocks + k;
  int all_fulls = 0, all_partials = 0;
  fulls = partials = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp == warp_index()) {
      fulls = all_fulls;
      partials = all_partials;
    }
    all_fulls += full_counts[warp][lane_index()];
    all_partials += partial_counts[warp][lane_index()];
  }
  if (warp_index() == 0) {
    out.full_count[column] = all_fulls;
    out.partial_count[column] = all_partials;
  }
  for (int q = first; q < end; ++q) {
    const int state = states[static_cast<long long>(q) * p.k_blocks];
    if (state == 1) out.full_index[column * out.most_full + fulls++] = q;
    if (state > 1) {
      out.partial_index[column * out.most_partial + partials] = q;
      out.partial_slot[column * out.most_partial + partials++] = state - 2;
    }
  }
}

}  // namespace tkpy::block_lists

extern "C" __global__ void __launch_bounds__(256) block_lists_rows(const __grid_constant__ tkpy::block_lists::Params p) {
  using namespace tkpy::block_lists;
  __shared__ int bins[kWarps][256];
  if (blockIdx.x == 0) write_masks(p);
  const long long row = static_cast<long long>(blockIdx.x) * kWarps + warp_index();
  if (row >= static_cast<long long>(p.pairs) * p.q_blocks) return;
  const Rows rows{p, static_cast<int>(row % p.q_blocks), row};
  rows.write(p.scores ? rows.choose(bins[warp_index()]) : Choice{});
}
extern "C" __global__ void __launch_bounds__(256) block_lists_columns(const __grid_constant__ tkpy::block_lists::Params p) {
  using namespace tkpy::block_lists;
  const int parts = (p.k_blocks + 31) / 32, part = static_cast<int>(blockIdx.x) % parts;
  write_columns(p, static_cast<int>(blockIdx.x) / parts, 32 * part + tk::lane_index());
}
