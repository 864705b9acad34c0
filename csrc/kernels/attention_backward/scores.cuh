// A warp's 16 keys times `Queries` queries of S and dP, transposed, in the registers of a wgmma accumulator: what masks,
// weights and gradients make of them.
#pragma once

#include "schedule.cuh"

namespace tkpy::attention_backward {

// The element mask of a partial block, in shared memory: of the warp's 16 keys, in the row of the first query; or null.
struct Bits {
  const unsigned short* first = nullptr;
  int pitch = 0;  // from one query to the next, in elements
};

template <class T, int Queries, bool Capped>
struct Scores {
  using Tile = rt_fl<16, Queries>;
  using Operand = rt<T, 16, Queries>;

  // Of this lane's keys (rows g and g + 8 of the warp's 16), the queries that do not see them; and of keys that there are
  // not, all. `key` and `query` are the warpgroup's first ones, in the sequence.
  TK_DEVICE static void hide(Tile& s, const Params& p, const Sequence& in, int key, int query) {
    const int diagonal = in.diagonal(), column = query + 2 * (lane_index() % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = key + 16 * (warp_index() % 4) + 8 * half + lane_index() / 4;
      int from = p.right >= 0 ? row - diagonal - p.right - column : 0;
      const int to = p.left >= 0 ? row - diagonal + p.left - column : Queries;
      if (row >= in.seq_k) from = Queries;
#pragma unroll
      for (int e = 2 * half; e < Tile::elements; e += 4)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int col = 8 * (e / 4) + i;
          s.x[0][e + i] = col >= from && col <= to ? s.x[0][e + i] : -fn::infinity;
        }
    }
  }
  TK_DEVICE static void keep(Tile& s, const Bits& bits) {
    const unsigned short* row = bits.first + 2 * (lane_index() % 4) * bits.pitch;
    const u32 key = 1u << lane_index() / 4;
#pragma unroll
    for (int piece = 0; piece < Queries / 8; ++piece)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const u32 seen = row[(8 * piece + i) * bits.pitch];
        s.x[0][4 * piece + i] = seen & key ? s.x[0][4 * piece + i] : -fn::infinity;
        s.x[0][4 * piece + 2 + i] = seen & key << 8 ? s.x[0][4 * piece + 2 + i] : -fn::infinity;
      }
  }
  TK_DEVICE static bool all_seen(const Params& p, const Sequence& in, int key, int query) {
    const int last = key + 63, diagonal = in.diagonal();
    return last < in.seq_k && (p.right < 0 || query >= last - diagonal - p.right) &&
           (p.left < 0 || query + Queries - 1 <= key - diagonal + p.left);
  }

  // Of the numbers of the queries, those of this lane's two queries of piece `piece` (8 queries).
  TK_DEVICE static float2 known(const float* numbers, int piece) {
    return ptx::ld_shared_v2(ptx::shared_address(numbers + 8 * piece + 2 * (lane_index() % 4)));
  }

  // S^T to P^T, rounded; s becomes P^T times the slope of the cap, 1 - tanh^2.
  TK_DEVICE static void weigh(Operand& weights, Tile& s, const Params& p, const Sequence& in, int key, int query,
                              const float* all_lse, const Bits& bits = {}) {
    const float outer = Capped ? p.cap_outer : 0.0f;
    if constexpr (Capped) {
      const float inner = p.cap_inner;
      if (outer > 0.0f)
        map(s, s, [=](float x) { return fn::tanh(inner * x); });
      else
        mul(s, s, inner);
    }
    if (!all_seen(p, in, key, query)) hide(s, p, in, key, query);
    if (bits.first != nullptr) keep(s, bits);
    if (Capped && outer > 0.0f)
      raise<Capped>(weights, s, outer, all_lse);
    else
      raise<false>(weights, s, Capped ? 1.0f : p.scale_log2, all_lse);
  }
  // 2^(c s - log2 e lse), and the same times the slope of the cap at s, its tanh.
  template <bool Bent>
  TK_DEVICE static void raise(Operand& weights, Tile& s, float c, const float* all_lse) {
#pragma unroll
    for (int piece = 0; piece < Queries / 8; ++piece) {
      const float2 lse = known(all_lse, piece);
#pragma unroll
      for (int e = 4 * piece; e < 4 * piece + 4; e += 2) {
        float x = s.x[0][e], y = s.x[0][e + 1];
        s.x[0][e] = fn::exp2(fmaf(x, c, -lse.x));
        s.x[0][e + 1] = fn::exp2(fmaf(y, c, -lse.y));
        weights.x[0][e / 2] = ptx::pack<T>(s.x[0][e], s.x[0][e + 1]);
        if constexpr (Bent) {  // of hidden ones, minus infinity, the slope is 0
          x = fmaxf(x, -1.0f);
          y = fmaxf(y, -1.0f);
          s.x[0][e] *= fmaf(-x, x, 1.0f);
          s.x[0][e + 1] *= fmaf(-y, y, 1.0f);
        }
      }
    }
  }

  // dS^T = P^T (dP^T - delta), slopes included in P^T.
  TK_DEVICE static void differentiate(Operand& ds, const Tile& dp, const Tile& s, const float* all_delta) {
#pragma unroll
    for (int piece = 0; piece < Queries / 8; ++piece) {
      const float2 delta = known(all_delta, piece);
#pragma unroll
      for (int e = 4 * piece; e < 4 * piece + 4; e += 2)
        ds.x[0][e / 2] = ptx::pack<T>(s.x[0][e] * (dp.x[0][e] - delta.x), s.x[0][e + 1] * (dp.x[0][e + 1] - delta.y));
    }
  }
};

}  // namespace tkpy::attention_backward
