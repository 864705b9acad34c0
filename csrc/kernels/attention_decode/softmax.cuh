// What a CTA of attention_decode has to do, the softmax of its rows while keys go by, and how shares of a softmax are joined.
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::attention_decode {

using namespace tk;

// What a CTA does: rows of one key head against a stretch of keys of one sequence.
struct Task {
  int batch, kv_head, head, split;  // head: the first of the group
  int first_row, rows;              // of this CTA; of the key head
  int diagonal, start, length;
  int begin, end;                   // keys that any row sees
  int first_tile, end_tile;

  TK_DEVICE int query(const Params& p, int row) const { return (first_row + row) / p.group; }
  TK_DEVICE int head_of(const Params& p, int row) const { return head + (first_row + row) % p.group; }
  TK_DEVICE long long out_row(const Params& p, int row) const {
    return (static_cast<long long>(batch) * p.seq_q + query(p, row)) * p.heads + head_of(p, row);
  }
  TK_DEVICE long long lse_at(const Params& p, int row) const {
    return (static_cast<long long>(batch) * p.heads + head_of(p, row)) * p.seq_q + query(p, row);
  }
  TK_DEVICE int low(const Params& p, int query) const {
    return p.left >= 0 ? max(start, query + diagonal - p.left) : start;
  }
  TK_DEVICE int high(const Params& p, int query) const {
    return p.right >= 0 ? min(length, query + diagonal + p.right + 1) - 1 : length - 1;
  }
};

TK_DEVICE Task find_task(const Params& p, int keys) {
  Task t;
  t.batch = blockIdx.z;
  t.head = static_cast<int>(blockIdx.y) * p.group;
  t.kv_head = p.kv_head_map ? min(max(p.kv_head_map[t.head], 0), p.kv_heads - 1) : static_cast<int>(blockIdx.y);
  t.split = static_cast<int>(blockIdx.x) / p.row_tiles;
  t.first_row = static_cast<int>(blockIdx.x) % p.row_tiles * kRows;
  t.rows = p.group * p.seq_q;
  t.length = min(max(p.seqlens[t.batch], 0), p.capacity);
  t.start = p.starts ? max(p.starts[t.batch], 0) : 0;
  t.diagonal = t.length - p.seq_q;  // masks are aligned at the bottom right
  t.begin = t.low(p, t.query(p, 0));
  t.end = t.high(p, (min(t.first_row + kRows, t.rows) - 1) / p.group) + 1;
  const int tiles = t.end > t.begin ? (t.end - t.begin + keys - 1) / keys : 0, share = (tiles + p.splits - 1) / p.splits;
  t.first_tile = min(t.split * share, tiles);
  t.end_tile = min(t.first_tile + share, tiles);
  return t;
}

// The running softmax of a warp's 16 rows, in units of log2; a lane has rows g and g + 8.
template <int Keys>
struct Softmax {
  using Scores = rt_fl<16, Keys>;
  float best[2] = {-fn::infinity, -fn::infinity}, total[2] = {};  // total: this lane's part
  int low[2], high[2];    // keys that the rows see
  int all_low, all_high;  // keys that all of them see

  TK_DEVICE Softmax(const Params& p, const Task& t) {
    all_low = t.low(p, (min(t.first_row + kRows, t.rows) - 1) / p.group);
    all_high = t.high(p, t.query(p, 0));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = t.query(p, 8 * half + lane_index() / 4);
      low[half] = t.low(p, query);
      high[half] = t.high(p, query);
    }
  }

  // Scores of the keys from `key` on become P; `factor` is what the sums so far are to be multiplied by.
  TK_DEVICE void step(Scores& s, float (&factor)[2], const Params& p, int key) {
    const float inner = p.inner, outer = p.outer;
    if (outer > 0.0f)
      map(s, s, [=](float x) { return outer * fn::tanh(inner * x); });
    else
      mul(s, s, inner);
    if (key < all_low || key + Keys - 1 > all_high) hide(s, key);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = best[half];
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4) highest = fmaxf(highest, fmaxf(s.x[0][e], s.x[0][e + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      const float base = highest == -fn::infinity ? 0.0f : highest;  // a row that has seen no key yet
      factor[half] = fn::exp2(best[half] - base);
      best[half] = highest;
      float sum = 0.0f;
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4) {
        s.x[0][e] = fn::exp2(s.x[0][e] - base);
        s.x[0][e + 1] = fn::exp2(s.x[0][e + 1] - base);
        sum += s.x[0][e] + s.x[0][e + 1];
      }
      total[half] = total[half] * factor[half] + sum;
    }
  }

 private:
  TK_DEVICE void hide(Scores& s, int key) {
#pragma unroll
    for (int e = 0; e < Scores::elements; ++e) {
      const int at = key + fragment_col(lane_index(), e), half = e / 2 % 2;
      s.x[0][e] = at >= low[half] && at <= high[half] ? s.x[0][e] : -fn::infinity;
    }
  }
};

// Weights of shares of a softmax, of maximum `best` and sum `total` (log2) each, sink included.
struct Join {
  float top = -fn::infinity, sum = 0.0f;
  TK_DEVICE void add(float best, float total) {
    // `fmaxf` passes NaN over: of a row of nothing else the maximum is -inf, as without keys; its total is NaN.
    const float higher = best == best && total == total ? fmaxf(top, best) : best * total;
    if (higher == -fn::infinity) return;
    sum = sum * fn::exp2(top - higher) + total * fn::exp2(best - higher);
    top = higher;
  }
  // What a share's sums are to be multiplied by.
  TK_DEVICE float weight(float best) const {
    if (best == -fn::infinity) return 0.0f;
    return fn::exp2(best - top) * fn::rcp(sum);
  }
  TK_DEVICE float lse() const { return sum == 0.0f ? -fn::infinity : fn::ln2 * (top + fn::log2(sum)); }
};

}  // namespace tkpy::attention_decode
