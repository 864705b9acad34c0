// Register tiles in another shape: parts, the other layout, the transpose.
#pragma once

#include "convert.cuh"

namespace tk {

// Columns first .. first + Cols - 1 of a row tile, rows first .. of a column tile: elements stay in their lanes.
// `first` must be known when compiling, or the tile leaves registers.
template <class T, int Rows, int Cols, int Whole>
TK_DEVICE void columns(rt<T, Rows, Cols>& dst, const rt<T, Rows, Whole>& src, int first) {
  using Tile = rt<T, Rows, Cols>;
  static_assert(Cols <= Whole, "columns takes a part of the tile");
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int w = 0; w < Tile::words; ++w) dst.x[b][w] = src.x[b][first / 2 / Tile::per_word + w];
}
template <class T, int Rows, int Cols, int Whole>
TK_DEVICE void rows(rt<T, Rows, Cols, Layout::col>& dst, const rt<T, Whole, Cols, Layout::col>& src, int first) {
  using Tile = rt<T, Rows, Cols, Layout::col>;
  static_assert(Rows <= Whole, "rows takes a part of the tile");
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int w = 0; w < Tile::words; ++w) dst.x[b][w] = src.x[b][first / 2 / Tile::per_word + w];
}
// Rows first .. of a row tile (a multiple of 16), columns first .. of a column tile.
template <class T, int Rows, int Cols, int Whole>
TK_DEVICE void rows(rt<T, Rows, Cols>& dst, const rt<T, Whole, Cols>& src, int first) {
  static_assert(Rows <= Whole, "rows takes a part of the tile");
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int w = 0; w < rt<T, Rows, Cols>::words; ++w) dst.x[b][w] = src.x[first / 16 + b][w];
}
template <class T, int Rows, int Cols, int Whole>
TK_DEVICE void columns(rt<T, Rows, Cols, Layout::col>& dst, const rt<T, Rows, Whole, Layout::col>& src, int first) {
  static_assert(Cols <= Whole, "columns takes a part of the tile");
#pragma unroll
  for (int b = 0; b < Cols / 16; ++b)
#pragma unroll
    for (int w = 0; w < rt<T, Rows, Cols, Layout::col>::words; ++w) dst.x[b][w] = src.x[first / 16 + b][w];
}

constexpr TK_HD Layout other(Layout layout) { return layout == Layout::row ? Layout::col : Layout::row; }

// dst = src^t, a column tile from a row tile or the reverse: the same registers, no instruction.
template <class T, int Rows, int Cols, Layout L>
TK_DEVICE void transpose(rt<T, Cols, Rows, L>& dst, const rt<T, Rows, Cols, other(L)>& src) {
#pragma unroll
  for (int b = 0; b < dst.blocks; ++b)
#pragma unroll
    for (int w = 0; w < dst.words; ++w) dst.x[b][w] = src.x[b][w];
}

namespace detail {

// Two neighbouring 32-bit elements of a row in each lane of an 8 x 8 matrix, transposed: their halves one after the
// other through movmatrix.
TK_DEVICE uint2 transpose_8x8(u32 x, u32 y) {
  const u32 low = ptx::movmatrix_trans(__byte_perm(x, y, 0x5410));
  const u32 high = ptx::movmatrix_trans(__byte_perm(x, y, 0x7632));
  return make_uint2(__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
}
TK_DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
TK_DEVICE u32 bits_of(int x) { return static_cast<u32>(x); }
TK_DEVICE void set_bits(float& x, u32 bits) { x = __uint_as_float(bits); }
TK_DEVICE void set_bits(int& x, u32 bits) { x = static_cast<int>(bits); }

template <class A, class B>
TK_DEVICE void swap_16bit(A& dst, const B& src) {
#pragma unroll
  for (int b = 0; b < B::blocks; ++b)
#pragma unroll
    for (int c = 0; c < A::blocks; ++c)
#pragma unroll
      for (int q = 0; q < 4; ++q)  // quadrants 1 and 2 change places
        dst.x[c][4 * b + (q % 2 * 2 + q / 2)] = ptx::movmatrix_trans(src.x[b][4 * c + q]);
}
template <class A, class B>
TK_DEVICE void swap_32bit(A& dst, const B& src) {
#pragma unroll
  for (int b = 0; b < B::blocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < B::elements / 4; ++j) {
        const int from = 4 * j + 2 * half, to = 4 * (2 * b + half) + 2 * (j % 2);
        const uint2 turned = transpose_8x8(bits_of(src.x[b][from]), bits_of(src.x[b][from + 1]));
        set_bits(dst.x[j / 2][to], turned.x);
        set_bits(dst.x[j / 2][to + 1], turned.y);
      }
}
// tf32: each 16 x 8 piece as pairs, turned, as runs of 1 again.
template <class A, class B>
TK_DEVICE void swap_tf32(A& dst, const B& src) {
#pragma unroll
  for (int b = 0; b < B::blocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < B::elements / 4; ++j) {
        const int from = 4 * j + half, to = 4 * (2 * b + half) + j % 2;
        const float2 pair = run1_to_pair(src.x[b][from], src.x[b][from + 2]);
        const uint2 turned = transpose_8x8(__float_as_uint(pair.x), __float_as_uint(pair.y));
        const float2 runs = pair_to_run1(__uint_as_float(turned.x), __uint_as_float(turned.y));
        dst.x[j / 2][to] = runs.x;
        dst.x[j / 2][to + 2] = runs.y;
      }
}
// 8 bits: 16 x 16 pieces as pairs, widened to 16 bits for movmatrix.
template <class A, class B>
TK_DEVICE void swap_8bit(A& dst, const B& src) {
#pragma unroll
  for (int b = 0; b < B::blocks; ++b)
#pragma unroll
    for (int c = 0; c < A::blocks; ++c) {
      u32 turned[2][2];  // [half of the rows][half of the columns]
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u32 pairs = run4_to_pairs(src.x[b][2 * c + half]);
        turned[half][0] = ptx::movmatrix_trans(__byte_perm(pairs, 0, 0x4140));
        turned[half][1] = ptx::movmatrix_trans(__byte_perm(pairs, 0, 0x4342));
      }
#pragma unroll
      for (int half = 0; half < 2; ++half)
        dst.x[c][2 * b + half] = pairs_to_run4(__byte_perm(turned[0][half], turned[1][half], 0x6420));
    }
}

}  // namespace detail

namespace detail {

// Can the tile move as a row tile and be turned in registers?
template <class Tile>
constexpr bool turns = Tile::layout == Layout::col && Tile::rows % 16 == 0 &&
                       Tile::cols % (is_32bit<typename Tile::type> ? 16 : 8 * Tile::per_word) == 0;

}  // namespace detail

// dst = src in the other layout; 16-bit types cost one movmatrix a register.
template <class T, int Rows, int Cols, Layout L>
TK_DEVICE void swap_layout(rt<T, Rows, Cols, L>& dst, const rt<T, Rows, Cols, other(L)>& src) {
  static_assert(Rows % 16 == 0 && Cols % 16 == 0, "both layouts need a multiple of 16 rows and of 16 columns");
  if constexpr (is_16bit<T>)
    detail::swap_16bit(dst, src);
  else if constexpr (is_same<T, tf32>)
    detail::swap_tf32(dst, src);
  else if constexpr (is_32bit<T>)
    detail::swap_32bit(dst, src);
  else
    detail::swap_8bit(dst, src);
}

// dst = src^t in the same layout.
template <class T, int Rows, int Cols, Layout L>
TK_DEVICE void transpose(rt<T, Cols, Rows, L>& dst, const rt<T, Rows, Cols, L>& src) {
  rt<T, Rows, Cols, other(L)> turned;
  swap_layout(turned, src);
  transpose(dst, turned);
}

}  // namespace tk
