// Pairs of tokens within a chunk, level by level: powers of decays by rows, which pairs meet, A = r w^(t-1-s) k.
#pragma once

#include "chunk.cuh"

namespace tkpy::wkv5 {

constexpr TK_HD int channel_of(int e) { return 2 * (e / 4) + e % 2; }  // of a lane's four, that of element e

// Powers of a lane's four key channels for rows t = g and g + 8 of a chunk, the same for every chunk: at level L, of tokens
// that are the later of pairs w^(t mod L), of the earlier w^(L-1 - t mod L).
struct RowPowers {
  float one[4], eight[4], level[2][4];  // w^1, w^8; L = 4, 8
  bool later;

  // Of 16 channels.
  TK_DEVICE RowPowers(const float* rate, bool later_) : later(later_) {
    const int g = lane_index() / 4;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float of = rate[tile_col(q / 2 * 4 + q % 2)];
      one[q] = power(of, 1);
      eight[q] = power(of, 8);
#pragma unroll
      for (int l = 0; l < 2; ++l) level[l][q] = power(of, later ? g % (4 << l) : (4 << l) - 1 - g % (4 << l));
    }
  }
  // Of the row of element e in the whole chunk: L = 16.
  TK_DEVICE float whole(int e) const {
    const float half = level[1][channel_of(e)];
    return (e / 2 % 2 != 0) == later ? half * eight[channel_of(e)] : half;
  }
  // x times that at level 2 << l.
  TK_DEVICE float scale(float x, int l, int e) const {
    const int q = channel_of(e);
    return l > 0 ? x * level[l - 1][q] : ((lane_index() & 4) != 0) == later ? x * one[q] : x;
  }
};

// Which elements of [query, key] meet at a level: the key is before the query, backwards after it.
struct Meeting {
  int near;  // the levels of elements 0 and (from bit 8 on) 1, of one half of the chunk
  bool backwards;

  TK_DEVICE explicit Meeting(bool backwards_) : backwards(backwards_) {
    const int g = lane_index() / 4, col = tile_col(0);
    near = backwards ? level_of(col, g) | level_of(col + 1, g) << 8 : level_of(g, col) | level_of(g, col + 1) << 8;
  }
  TK_DEVICE bool operator()(int e, int level) const {
    const int query = e / 2 % 2, key = e / 4;  // halves of the chunk
    return query == key ? level < 8 && near & level << 8 * (e % 2) : (query > key) != backwards && level == 8;
  }
};

// A[query, key] over 16 channels; r u k on the diagonal. The queries are r and the keys k, backwards the other way.
template <class T>
TK_DEVICE void score(Tile& scores, const Tile& query, const Tile& key, const rt<T, 16, 16>& query_raw,
                     const rt<T, 16, 16>& key_raw, const RowPowers& of_query, const RowPowers& of_key, const Meeting& meet,
                     const float* u) {
  float own[2] = {};
#pragma unroll
  for (int e = 0; e < 8; ++e) own[e / 2 % 2] += query.x[0][e] * u[tile_col(e)] * key.x[0][e];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    own[h] += __shfl_xor_sync(0xffffffffu, own[h], 1);
    own[h] += __shfl_xor_sync(0xffffffffu, own[h], 2);
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) scores.x[0][e] = tile_row(e) == tile_col(e) ? own[e / 2 % 2] : 0.0f;
#pragma unroll
  for (int l = -1; l < 3; ++l) {
    Tile product;
    zero(product);
    if (l < 0) {  // neighbours: no decay between them
      mma_ABt(product, query_raw, key_raw);
    } else {
      Parts<raw_parts<T>> left, right;
      Tile scaled;
#pragma unroll
      for (int e = 0; e < 8; ++e) scaled.x[0][e] = of_query.scale(query.x[0][e], l, e);
      split(left, scaled);
#pragma unroll
      for (int e = 0; e < 8; ++e) scaled.x[0][e] = of_key.scale(key.x[0][e], l, e);
      split(right, scaled);
      multiply(product, left, right);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (meet(e, 1 << (l + 1))) scores.x[0][e] = product.x[0][e];
  }
}

// Warps' shares of the scores of a chunk, by fragments.
template <int Warps>
struct Shares {
  float4 x[Warps][2][32];

  TK_DEVICE void leave(const Tile& scores, int warp) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      x[warp][h][lane_index()] =
          make_float4(scores.x[0][4 * h], scores.x[0][4 * h + 1], scores.x[0][4 * h + 2], scores.x[0][4 * h + 3]);
  }
  template <int Count>
  TK_DEVICE void add_up(Parts<Count>& dst) const {
    Tile sum;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float4 all = x[0][h][lane_index()];
#pragma unroll
      for (int w = 1; w < Warps; ++w) {
        const float4 share = x[w][h][lane_index()];
        all = make_float4(all.x + share.x, all.y + share.y, all.z + share.z, all.w + share.w);
      }
      sum.x[0][4 * h] = all.x;
      sum.x[0][4 * h + 1] = all.y;
      sum.x[0][4 * h + 2] = all.z;
      sum.x[0][4 * h + 3] = all.w;
    }
    split(dst, sum);
  }
};

// An operand of 16 rows for all warps: this one's 16 columns.
template <int Count, int N>
TK_DEVICE void leave(st<bf16, kChunk, N> (&to)[Count], const Tile& x, int warp) {
  Parts<Count> parts;
  split(parts, x);
#pragma unroll
  for (int i = 0; i < Count; ++i) store(to[i], parts.part[i], 0, 16 * warp);
}

}  // namespace tkpy::wkv5
