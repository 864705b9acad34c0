// Matrix products D += A B. The letters say how the operands are stored:
//   mma_AB   A [M, K]  B [K, N]        mma_ABt   A [M, K]  B [N, K]
//   mma_AtB  A [K, M]  B [K, N]        mma_AtBt  A [K, M]  B [N, K]
// Of a warpgroup (wgmma): M = 64, D spread over its four warps (rt<.., 16, N> each, rows 16 w ..); B a shared tile, A a
// shared tile or the warp's 16 rows of it in registers. Asynchronous: mma_fence() before the first product and after
// registers were touched; mma_commit() closes a group; mma_wait<n>() until at most n groups are in flight. Until then
// D, and A in registers, must not be touched.
// Of a warp (mma.sync): A, B and D in registers; synchronous, no fences.
// Types: bf16 or fp16 or tf32 or any mix of e4m3 and e5m2 into float; fp16 (and by wgmma fp8) into fp16; any mix of
// int8 and uint8 into int.
#pragma once

#include "ptx.cuh"
#include "ptx_mma.cuh"
#include "ptx_wgmma.cuh"
#include "tiles.cuh"

namespace tk {

namespace detail {

template <class Tile>
TK_DEVICE void hold(Tile& tile) {
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int w = 0; w < Tile::words; ++w) ptx::hold(tile.x[b][w]);
}

}  // namespace detail

TK_DEVICE void mma_fence() { ptx::wgmma_fence(); }
TK_DEVICE void mma_commit() { ptx::wgmma_commit_group(); }
// Names as arguments the register tiles that are ready now: the compiler, to whom their registers were written when the
// product was issued, then moves no use of them above the wait.
template <int Pending = 0, class... Tiles>
TK_DEVICE void mma_wait(Tiles&... ready) {
  ptx::wgmma_wait_group<Pending>();
  (detail::hold(ready), ...);
}

// The descriptor of a tile, and how it grows to that of k-step `step`: one addition instead of one register a step.
// A sub-tile begins at a multiple of 8 rows, and of 32 bytes of columns (K along its rows) or of a panel.
template <class Tile, Major major>
TK_DEVICE u64 descriptor(const Tile& tile) {
  static_assert(Tile::swizzle != 0, "wgmma reads swizzled tiles: give the tile a swizzle of 32, 64 or 128 bytes");
  if constexpr (is_part<Tile>)
    return tile_descriptor(ptx::shared_address(tile.tile->data) + tile.corner(0, 0), major, Tile::whole::rows,
                           Tile::swizzle, 0);
  else
    return tile_descriptor(ptx::shared_address(tile.data), major, Tile::rows, Tile::swizzle, 0);
}
template <class Tile, Major major>
TK_DEVICE u64 step_of(const Tile& tile, int step) {
  constexpr int k = 32 / static_cast<int>(sizeof(typename Tile::type));
  if constexpr (is_part<Tile>)
    return encode_offset(tile.corner(major == Major::mn ? 16 * step : 0, major == Major::k ? k * step : 0) -
                         tile.corner(0, 0));
  else
    return encode_offset(step_offset(major, Tile::rows, Tile::swizzle, step));
}

namespace detail {

TK_DEVICE u32 word_of(u32 bits) { return bits; }
TK_DEVICE u32 word_of(float value) { return __float_as_uint(value); }
// Step `step` (16 rows x 32 bytes) of block `b` of an operand in registers.
template <class A>
TK_DEVICE void operand(u32 (&words)[4], const A& a, int b, int step) {
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = word_of(a.x[b][4 * step + i]);
}

// wgmma, both operands in shared memory.
template <Major MajorA, Major MajorB, class D, class A, class B>
TK_DEVICE void mma_shared(D& d, const A& a, const B& b, bool accumulate) {
  constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
  using Form = ptx::wgmma_form<typename D::type, typename A::type, typename B::type>;
  constexpr int depth = at ? A::rows : A::cols;
  static_assert((at ? A::cols : A::rows) == 64, "A must have 64 rows (columns when it is stored transposed)");
  static_assert(!at || is_16bit<typename A::type>,
                "wgmma reads tf32 and 8-bit operands along K only: A must be stored M x K");
  static_assert(depth % Form::depth == 0, "the inner dimension must be a multiple of 32 bytes");
  const u64 first_a = descriptor<A, MajorA>(a), first_b = descriptor<B, MajorB>(b);
#pragma unroll
  for (int step = 0; step < depth / Form::depth; ++step)
    ptx::wgmma<Form, at, bt>(d.x[0], first_a + step_of<A, MajorA>(a, step), first_b + step_of<B, MajorB>(b, step),
                             step > 0 || accumulate);
}

// wgmma, A in registers.
template <Major MajorB, class D, class A, class B>
TK_DEVICE void mma_register(D& d, const A& a, const B& b, bool accumulate) {
  using Form = ptx::wgmma_form<typename D::type, typename A::type, typename B::type>;
  static_assert(A::rows == 16 && A::layout == Layout::row,
                "A in registers must be the warp's 16 rows of it, in row layout, stored M x K");
  const u64 first_b = descriptor<B, MajorB>(b);
#pragma unroll
  for (int step = 0; step < A::cols / Form::depth; ++step) {
    u32 words[4];
    operand(words, a, 0, step);
    ptx::wgmma<Form, MajorB == Major::mn>(d.x[0], words, first_b + step_of<B, MajorB>(b, step),
                                          step > 0 || accumulate);
  }
}

// mma.sync: every operand has its K along the runs of its fragments, four words a step of 32 bytes; of B's block of 16
// columns, words 0 and 2 are the first eight, 1 and 3 the others.
template <class D, class A, class B>
TK_DEVICE void mma_warp(D& d, const A& a, const B& b, bool accumulate) {
  using Form = ptx::mma_form<typename D::type, typename A::type, typename B::type>;
  constexpr int words = 4 / D::per_word;  // accumulator registers of 8 columns
  if (!accumulate) {
#pragma unroll
    for (int i = 0; i < D::blocks; ++i)
#pragma unroll
      for (int w = 0; w < D::words; ++w) d.x[i][w] = 0;
  }
#pragma unroll
  for (int i = 0; i < D::blocks; ++i)
#pragma unroll
    for (int step = 0; step < A::along / Form::depth; ++step) {
      u32 left[4];
      operand(left, a, i, step);
#pragma unroll
      for (int j = 0; j < B::blocks; ++j) {
        u32 right[4];
        operand(right, b, j, step);
        ptx::mma<Form>(&d.x[i][words * (2 * j)], left, right[0], right[2]);
        ptx::mma<Form>(&d.x[i][words * (2 * j + 1)], left, right[1], right[3]);
      }
    }
}

template <Major MajorA, Major MajorB, class D, class A, class B>
TK_DEVICE void mma(D& d, const A& a, const B& b, bool accumulate) {
  constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
  using TA = typename A::type;
  using TB = typename B::type;
  static_assert(is_same<TA, TB> || (is_fp8<TA> && is_fp8<TB>) || (is_int8<TA> && is_int8<TB>),
                "A and B must hold the same type");
  static_assert(is_rt<D> && D::layout == Layout::row, "D must be a register tile in row layout");
  static_assert((bt ? B::rows : B::cols) != 0 && (bt ? B::cols : B::rows) == D::cols,
                "the accumulator must be as wide as B");
  static_assert((bt ? B::rows : B::cols) == (at ? A::rows : A::cols), "A and B must have the same inner dimension");
  if constexpr (is_rt<B>) {
    static_assert(ptx::mma_form<typename D::type, TA, TB>::exists, "mma.sync has no product of these types");
    static_assert(is_rt<A>, "with B in registers, A must be in registers too");
    static_assert((at ? A::cols : A::rows) == D::rows, "the accumulator must be as tall as A");
    static_assert((A::layout == Layout::col) == at, "A must be in row layout, or stored K x M in column layout");
    static_assert((B::layout == Layout::col) == bt, "B must be stored K x N in column layout, or N x K in row layout");
    mma_warp(d, a, b, accumulate);
  } else {
    using Form = ptx::wgmma_form<typename D::type, TA, TB>;
    static_assert(Form::exists, "wgmma has no product of these types");
    static_assert(D::rows == 16 && D::cols % 8 == 0 && D::cols <= 256,
                  "D of a warpgroup has 16 rows a warp and 8 to 256 columns");
    static_assert(!is_int8<TA> || D::cols == 8 || D::cols == 24 || D::cols % 16 == 0,
                  "integer products have 8, 24 or a multiple of 16 columns");
    static_assert(!bt || is_16bit<TB>, "wgmma reads tf32 and 8-bit operands along K only: B must be stored N x K");
    if constexpr (is_rt<A>) {
      static_assert(!at, "A in registers must be the warp's 16 rows of it, in row layout, stored M x K");
      mma_register<MajorB>(d, a, b, accumulate);
    } else {
      mma_shared<MajorA, MajorB>(d, a, b, accumulate);
    }
  }
}

}  // namespace detail

// `accumulate` false overwrites D.
template <class D, class A, class B>
TK_DEVICE void mma_AB(D& d, const A& a, const B& b, bool accumulate = true) {
  detail::mma<Major::k, Major::mn>(d, a, b, accumulate);
}
template <class D, class A, class B>
TK_DEVICE void mma_ABt(D& d, const A& a, const B& b, bool accumulate = true) {
  detail::mma<Major::k, Major::k>(d, a, b, accumulate);
}
template <class D, class A, class B>
TK_DEVICE void mma_AtB(D& d, const A& a, const B& b, bool accumulate = true) {
  detail::mma<Major::mn, Major::mn>(d, a, b, accumulate);
}
template <class D, class A, class B>
TK_DEVICE void mma_AtBt(D& d, const A& a, const B& b, bool accumulate = true) {
  detail::mma<Major::mn, Major::k>(d, a, b, accumulate);
}
// The storage orders as parameters: Major::k is M x K and N x K, Major::mn K x M and K x N.
template <Major MajorA, Major MajorB, class D, class A, class B>
TK_DEVICE void mma(D& d, const A& a, const B& b, bool accumulate = true) {
  detail::mma<MajorA, MajorB>(d, a, b, accumulate);
}

}  // namespace tk
