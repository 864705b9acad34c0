// Reductions of register tiles: over each row, over each column, over all. Every lane that holds a place of the result
// has it. Sums and products of 8- and 16-bit tiles are fp32.
//   row_sum(v, tile)            v: Tile::per_row         v = the sum of each row
//   row_sum(v, tile, init)      v = init + the sum of each row; init may be v
//   col_max(v, tile)            v: Tile::per_col
//   sum(tile)                   one number
//   col_sum<warpgroup>(v, tile, scratch, barrier)        over the rows of all warps of the group
#pragma once

#include "functions.cuh"
#include "sync.cuh"
#include "tiles.cuh"

namespace tk {

namespace detail {

struct add_op {
  template <class T>
  TK_DEVICE static T of(T x, T y) {
    return x + y;
  }
};
struct mul_op {
  template <class T>
  TK_DEVICE static T of(T x, T y) {
    return x * y;
  }
};
struct max_op {
  template <class T>
  TK_DEVICE static T of(T x, T y) {
    return fn::max(x, y);
  }
};
struct min_op {
  template <class T>
  TK_DEVICE static T of(T x, T y) {
    return fn::min(x, y);
  }
};

// Over lanes that differ in the bits of Mask of their number; all of them get the result.
template <class Op, int First, int Last, class T>
TK_DEVICE T over_lanes(T value) {
#pragma unroll
  for (int bit = First; bit <= Last; bit *= 2) value = Op::of(value, __shfl_xor_sync(0xffffffffu, value, bit));
  return value;
}

// Along a block's elements, then over the four lanes that share a row (of a row tile).
template <class Op, class V, class Tile>
TK_DEVICE void reduce_along(V& dst, const Tile& src) {
  constexpr int run = Tile::run;
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      typename Tile::compute value = src.get(b, half * run);
#pragma unroll
      for (int e = half * run + 1; e < Tile::elements; ++e)
        if (e / run % 2 == half) value = Op::of(value, src.get(b, e));
      dst.x[2 * b + half] = over_lanes<Op, 1, 2>(value);
    }
}

// Over blocks and halves, then over the eight lanes that share a column (of a row tile).
template <class Op, class V, class Tile>
TK_DEVICE void reduce_across(V& dst, const Tile& src) {
  constexpr int run = Tile::run;
#pragma unroll
  for (int k = 0; k < V::slots; ++k) {
    const int e = k / run * 2 * run + k % run;
    typename Tile::compute value = Op::of(src.get(0, e), src.get(0, e + run));
#pragma unroll
    for (int b = 1; b < Tile::blocks; ++b) value = Op::of(value, Op::of(src.get(b, e), src.get(b, e + run)));
    dst.x[k] = over_lanes<Op, 4, 16>(value);
  }
}

template <class Op, class V, class Tile>
TK_DEVICE void reduce(V& dst, const Tile& src) {
  if constexpr (V::spread == Spread::across)
    reduce_along<Op>(dst, src);
  else
    reduce_across<Op>(dst, src);
}
template <class Op, class V, class Tile>
TK_DEVICE void reduce(V& dst, const Tile& src, const V& init) {
  const V before = init;
  reduce<Op>(dst, src);
#pragma unroll
  for (int k = 0; k < V::slots; ++k) dst.x[k] = Op::of(before.x[k], dst.x[k]);
}

template <class Op, class Tile>
TK_DEVICE typename Tile::compute reduce_all(const Tile& src) {
  typename Tile::compute value = src.get(0, 0);
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int e = b == 0; e < Tile::elements; ++e) value = Op::of(value, src.get(b, e));
  return over_lanes<Op, 1, 16>(value);
}

// Each warp's part goes to its own stretch of scratch; all meet at the barrier, and again before scratch is reused.
template <class Scope, class Op, class V, class T, int Length>
TK_DEVICE void reduce_group(V& value, sv<T, Length>& scratch, int barrier) {
  static_assert(is_same<T, typename V::type> && Length >= Scope::warps * V::length,
                "scratch must hold one vector of the result's type for each warp");
#pragma unroll
  for (int k = 0; k < V::slots; ++k)
    if (V::owns()) scratch.data[Scope::warp() * V::length + V::index(k)] = value.x[k];
  sync(barrier, Scope::threads);
#pragma unroll
  for (int k = 0; k < V::slots; ++k) {
    value.x[k] = scratch.data[V::index(k)];
#pragma unroll
    for (int w = 1; w < Scope::warps; ++w) value.x[k] = Op::of(value.x[k], scratch.data[w * V::length + V::index(k)]);
  }
  sync(barrier, Scope::threads);
}

}  // namespace detail

#define TK_REDUCE(NAME)                                                                                       \
  template <class V, class Tile>                                                                              \
    requires(is_rv<V> && is_rt<Tile>)                                                                         \
  TK_DEVICE void row_##NAME(V& dst, const Tile& src) {                                                        \
    static_assert(is_same<V, typename Tile::per_row>, "row_" #NAME " needs one value per row: Tile::per_row"); \
    detail::reduce<detail::TK_OP_##NAME>(dst, src);                                                           \
  }                                                                                                           \
  template <class V, class Tile>                                                                              \
    requires(is_rv<V> && is_rt<Tile>)                                                                         \
  TK_DEVICE void row_##NAME(V& dst, const Tile& src, const V& init) {                                         \
    static_assert(is_same<V, typename Tile::per_row>, "row_" #NAME " needs one value per row: Tile::per_row"); \
    detail::reduce<detail::TK_OP_##NAME>(dst, src, init);                                                     \
  }                                                                                                           \
  template <class V, class Tile>                                                                              \
    requires(is_rv<V> && is_rt<Tile>)                                                                         \
  TK_DEVICE void col_##NAME(V& dst, const Tile& src) {                                                        \
    static_assert(is_same<V, typename Tile::per_col>, "col_" #NAME " needs one value per column: Tile::per_col"); \
    detail::reduce<detail::TK_OP_##NAME>(dst, src);                                                           \
  }                                                                                                           \
  template <class V, class Tile>                                                                              \
    requires(is_rv<V> && is_rt<Tile>)                                                                         \
  TK_DEVICE void col_##NAME(V& dst, const Tile& src, const V& init) {                                         \
    static_assert(is_same<V, typename Tile::per_col>, "col_" #NAME " needs one value per column: Tile::per_col"); \
    detail::reduce<detail::TK_OP_##NAME>(dst, src, init);                                                     \
  }                                                                                                           \
  template <class Scope, class V, class Tile, class T, int Length>                                            \
    requires(is_rv<V> && is_rt<Tile>)                                                                         \
  TK_DEVICE void col_##NAME(V& dst, const Tile& src, sv<T, Length>& scratch, int barrier) {                   \
    col_##NAME(dst, src);                                                                                     \
    detail::reduce_group<Scope, detail::TK_OP_##NAME>(dst, scratch, barrier);                                 \
  }                                                                                                           \
  template <class Tile>                                                                                       \
    requires is_rt<Tile>                                                                                      \
  TK_DEVICE typename Tile::compute NAME(const Tile& src) {                                                    \
    return detail::reduce_all<detail::TK_OP_##NAME>(src);                                                     \
  }
#define TK_OP_sum add_op
#define TK_OP_max max_op
#define TK_OP_min min_op
#define TK_OP_prod mul_op
TK_REDUCE(sum)   // the sum
TK_REDUCE(max)   // the largest
TK_REDUCE(min)   // the smallest
TK_REDUCE(prod)  // the product
#undef TK_OP_sum
#undef TK_OP_max
#undef TK_OP_min
#undef TK_OP_prod
#undef TK_REDUCE

}  // namespace tk
