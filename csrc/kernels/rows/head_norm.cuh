// What both directions of group_norm have: a team (rows.cuh) to a head, which stays with it for every n-th row.
#pragma once

#include "head_norm_params.h"
#include "rows.cuh"

namespace tkpy::rows {

template <class T>
struct HeadNorm {
  static constexpr int N = chunk_width<T>, V = kElements / N;
  using Values = float[V][N];
  using Bits = raw<T, N>[V];

  const HeadNormParams& p;
  Team team;
  int head;
  long long split, steps;  // rows of this team; all teams go through as many steps

  TK_DEVICE explicit HeadNorm(const HeadNormParams& params) : p(params), team(params.lanes) {
    const long long index = static_cast<long long>(blockIdx.x) * team.teams + team.index;
    head = static_cast<int>(index % p.heads);
    split = index / p.heads;
    steps = (p.rows + p.splits - 1) / p.splits;
  }

  TK_DEVICE long long row(long long step) const { return step * p.splits + split; }
  TK_DEVICE bool exists(long long step) const { return split < p.splits && row(step) < p.rows; }
  TK_DEVICE int limit(long long step) const { return exists(step) ? p.size : 0; }
  TK_DEVICE long long index(long long step) const { return row(step) * p.heads + head; }  // of the head in that row
  TK_DEVICE int column(int k) const { return team.column<N>(0, k); }

  TK_DEVICE void fetch(Bits& bits, const void* from, long long step) const {
    const int columns = from == nullptr ? 0 : limit(step);
#pragma unroll
    for (int k = 0; k < V; ++k)
      bits[k].load(static_cast<const T*>(from) + index(step) * p.size, column(k), columns, p.grain);
  }
  TK_DEVICE void store(void* to, const float (&v)[N], int k, long long step) const {
    raw<T, N> bits;
    bits.put(v);
    bits.store(static_cast<T*>(to) + index(step) * p.size, column(k), limit(step), p.grain);
  }
  TK_DEVICE void load_parameters(Values& v, const Vector& whole, float missing) const {
    Vector own = whole;
    const long long at = static_cast<long long>(head) * p.size;
    if (own.data != nullptr)
      own.data = own.kind == kF32 ? static_cast<const void*>(static_cast<const float*>(own.data) + at)
                                  : static_cast<const void*>(static_cast<const T*>(own.data) + at);
#pragma unroll
    for (int k = 0; k < V; ++k) parameters<T>(v[k], own, column(k), p.size, missing);
  }
};

}  // namespace tkpy::rows
