// The softmax of a warp's 16 query rows while blocks of scores go by (online softmax), in units of log2.
//   m <- max(m, max_j s_j)      P_j = 2^(c s_j - c m)      l <- l 2^(c m_old - c m) + sum_j P_j
// c is scale * log2 e for plain kernels; capped ones turn scores into units of log2 first, and c is 1.
#pragma once

#include "schedule.cuh"

namespace tkpy::attention_forward {

// A block of keys that a step meets: its first key and, where an element mask applies, this lane's part of it: bits of its
// two rows, moved by the lane's first column.
template <int Keys, bool Listed>
struct Seen {
  int key;
};
template <int Keys>
struct Seen<Keys, true> {
  int key;
  bool partial;
  u32 bits[2][Keys / 32];
};

template <int Keys, bool Capped, bool Listed>
struct Softmax {
  using Scores = rt_fl<16, Keys>;
  float best[2], total[2];  // rows g and g + 8; total: this lane's part of the row
  int low[2], high[2];      // keys that the rows see: low <= key <= high
  int all_low, all_high;    // keys that all rows of the warpgroup see

  TK_DEVICE void begin(const Params& p, const Tile& tile, int first_row) {
    const int diagonal = tile.diagonal(), last = tile.seq_k - 1;
    const auto lowest = [&](int row) { return p.left >= 0 ? row + diagonal - p.left : 0; };
    const auto highest = [&](int row) { return p.right >= 0 ? min(last, row + diagonal + p.right) : last; };
    all_low = lowest(first_row + 63);
    all_high = highest(first_row);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 16 * (warp_index() % 4) + 8 * half + lane_index() / 4;
      best[half] = -fn::infinity;
      total[half] = 0.0f;
      low[half] = lowest(row);
      high[half] = highest(row);
    }
  }

  // One block of scores becomes P; `factor` is what the sums so far are to be multiplied by.
  TK_DEVICE void step(Scores& s, float (&factor)[2], const Params& p, const Seen<Keys, Listed>& seen) {
    const int key = seen.key;
    if constexpr (Capped) {
      const float inner = p.cap_inner, outer = p.cap_outer;
      if (outer > 0.0f)
        map(s, s, [=](float x) { return outer * fn::tanh(inner * x); });
      else
        mul(s, s, inner);
    }
    if (key < all_low || key + Keys - 1 > all_high) hide(s, key);
    if constexpr (Listed)
      if (seen.partial) keep(s, seen.bits);
    const float c = Capped ? 1.0f : p.scale_log2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = best[half];
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4) highest = fmaxf(highest, fmaxf(s.x[0][e], s.x[0][e + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      const float base = highest == -fn::infinity ? 0.0f : highest * c;  // a row that has seen no key yet
      factor[half] = fn::exp2(best[half] * c - base);
      best[half] = highest;
      float sum = 0.0f;
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4) {
        s.x[0][e] = fn::exp2(fmaf(s.x[0][e], c, -base));
        s.x[0][e + 1] = fn::exp2(fmaf(s.x[0][e + 1], c, -base));
        sum += s.x[0][e] + s.x[0][e + 1];
      }
      total[half] = total[half] * factor[half] + sum;
    }
  }

  // The factors that turn sums into outputs, and the natural log of the denominators, sink included.
  TK_DEVICE void finish(float (&factor)[2], float (&lse)[2], const Params& p, int head) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      float exponent = best[half] == -fn::infinity ? -fn::infinity : best[half] * (Capped ? 1.0f : p.scale_log2);
      float share = 1.0f;
      if (p.sinks) {
        const float sink = p.sinks[head] * fn::log2e, larger = fmaxf(exponent, sink);
        if (larger > -fn::infinity) {
          share = fn::exp2(exponent - larger);
          sum = sum * share + fn::exp2(sink - larger);
        }
        exponent = larger;
      }
      factor[half] = sum > 0.0f || sum != sum ? share * fn::rcp(sum) : 0.0f;  // no key and no sink: 0; NaN stays
      lse[half] = sum == 0.0f ? -fn::infinity : fn::ln2 * (exponent + fn::log2(sum));
    }
  }

  // Keys that a row does not see, of the block that begins at `key`.
  TK_DEVICE void hide(Scores& s, int key) {
    const int column = key + 2 * (lane_index() % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int from = low[half] - column, to = high[half] - column;
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 8 * (e / 4) + i;
          s.x[0][e + i] = at >= from && at <= to ? s.x[0][e + i] : -fn::infinity;
        }
    }
  }

 private:
  TK_DEVICE void keep(Scores& s, const u32 (&bits)[2][Keys / 32]) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 8 * (e / 4) + i;
          s.x[0][e + i] = bits[half][at / 32] >> at % 32 & 1 ? s.x[0][e + i] : -fn::infinity;
        }
  }
};

}  // namespace tkpy::attention_forward
