// What both directions of merge_state have: a team (rows.cuh) to a row, and the weights of its two parts.
#pragma once

#include "merge_params.h"
#include "rows.cuh"

namespace tkpy::rows {

template <class T>
struct Merge {
  static constexpr int N = chunk_width<T>, V = kElements / N;
  using Bits = raw<T, N>[V];

  const MergeParams& p;
  Team team;
  int head, token;
  long long batch;

  TK_DEVICE explicit Merge(const MergeParams& params) : p(params), team(params.lanes) {
    const unsigned place = blockIdx.x / static_cast<unsigned>(p.heads);
    head = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.heads));
    token = static_cast<int>(place % p.blocks) * team.teams + team.index;
    batch = place / p.blocks;
  }

  TK_DEVICE bool exists() const { return token < p.length; }
  TK_DEVICE int column(int k) const { return team.column<N>(0, k); }
  template <class E>
  TK_DEVICE E* at(const PerHead& all) const {
    return static_cast<E*>(all.data) + batch * all.batch + token * all.token + head * all.head;
  }
  TK_DEVICE float number(const PerHead& all, float missing) const {
    return all.data != nullptr && exists() ? *at<float>(all) : missing;
  }
  TK_DEVICE void leave(const PerHead& all, float value) const {
    if (all.data != nullptr && exists() && team.lane == 0) *at<float>(all) = value;
  }
  TK_DEVICE void fetch(Bits& bits, const PerHead& rows) const {
    const int columns = rows.data != nullptr && exists() ? p.size : 0;
#pragma unroll
    for (int k = 0; k < V; ++k) bits[k].load(at<const T>(rows), column(k), columns, p.grain);
  }
  TK_DEVICE void store(const PerHead& rows, const float (&v)[N], int k) const {
    raw<T, N> bits;
    bits.put(v);
    bits.store(at<T>(rows), column(k), rows.data != nullptr && exists() ? p.size : 0, p.grain);
  }

  // w_i = 1 / (1 + e^(lse_j - lse_i)), of the difference, so exact where both are large; the log-sum-exp of both.
  TK_DEVICE float weigh(float (&w)[2]) const {
    float lse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      lse[i] = number(p.lse[i], -INFINITY);
      if (lse[i] == INFINITY) lse[i] = -INFINITY;  // FlashAttention-2's mark of a row that saw no key
    }
    const bool empty = lse[0] == -INFINITY && lse[1] == -INFINITY;
    const float ahead = empty ? 0.0f : lse[0] - lse[1];
    w[0] = empty ? 0.0f : fn::sigmoid(ahead);
    w[1] = empty ? 0.0f : fn::sigmoid(-ahead);
    return fmaxf(lse[0], lse[1]) + fn::log(1.0f + fn::exp(-fabsf(ahead)));
  }
  // A part's elements, 0 where it has no say: they may be anything then.
  TK_DEVICE void part(float (&v)[N], const raw<T, N>& bits, float weight) const {
    bits.get(v);
    if (weight != 0.0f) return;
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = 0.0f;
  }
};

}  // namespace tkpy::rows
