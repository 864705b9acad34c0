// Mathematics on register tiles: maps, conversions, row reductions. All are warp-wide and in place safe.
#pragma once

#include "tiles.cuh"

namespace tk {

template <int Rows, int Cols>
TK_DEVICE void fill(rt_fl<Rows, Cols>& dst, float value) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int e = 0; e < Cols / 2; ++e) dst.x[b][e] = value;
}
template <int Rows, int Cols>
TK_DEVICE void zero(rt_fl<Rows, Cols>& dst) {
  fill(dst, 0.0f);
}

// dst = f(src) element by element.
template <int Rows, int Cols, class F>
TK_DEVICE void map(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& src, F f) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int e = 0; e < Cols / 2; ++e) dst.x[b][e] = f(src.x[b][e]);
}
template <int Rows, int Cols, class F>
TK_DEVICE void map(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& a, const rt_fl<Rows, Cols>& b, F f) {
#pragma unroll
  for (int i = 0; i < Rows / 16; ++i)
#pragma unroll
    for (int e = 0; e < Cols / 2; ++e) dst.x[i][e] = f(a.x[i][e], b.x[i][e]);
}
// dst = f(row, col, src), the place counted from the tile's own corner: masks, bias, positions.
template <int Rows, int Cols, class F>
TK_DEVICE void map_at(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& src, F f) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int e = 0; e < Cols / 2; ++e)
      dst.x[b][e] = f(16 * b + fragment_row(threadIdx.x % 32, e), fragment_col(threadIdx.x % 32, e), src.x[b][e]);
}

template <int Rows, int Cols>
TK_DEVICE void add(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& a, const rt_fl<Rows, Cols>& b) {
  map(dst, a, b, [](float x, float y) { return x + y; });
}
template <int Rows, int Cols>
TK_DEVICE void mul(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& a, const rt_fl<Rows, Cols>& b) {
  map(dst, a, b, [](float x, float y) { return x * y; });
}
template <int Rows, int Cols>
TK_DEVICE void mul(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& a, float factor) {
  map(dst, a, [factor](float x) { return x * factor; });
}
template <int Rows, int Cols>
TK_DEVICE void exp2(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& a) {
  map(dst, a, [](float x) { return ptx::ex2(x); });
}

// dst = f(src, vec[row])
template <int Rows, int Cols, class F>
TK_DEVICE void map_rows(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& src, const rv<float, Rows, Spread::across>& vec, F f) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int e = 0; e < Cols / 2; ++e) dst.x[b][e] = f(src.x[b][e], vec.x[across_slot(b, e)]);
}
template <int Rows, int Cols>
TK_DEVICE void sub_rows(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& src, const rv<float, Rows, Spread::across>& vec) {
  map_rows(dst, src, vec, [](float x, float v) { return x - v; });
}
template <int Rows, int Cols>
TK_DEVICE void mul_rows(rt_fl<Rows, Cols>& dst, const rt_fl<Rows, Cols>& src, const rv<float, Rows, Spread::across>& vec) {
  map_rows(dst, src, vec, [](float x, float v) { return x * v; });
}

// dst[row] = src[row][0] f src[row][1] f ..: within the lane first, then over the four lanes of the row.
template <int Rows, int Cols, class F>
TK_DEVICE void reduce_rows(rv<float, Rows, Spread::across>& dst, const rt_fl<Rows, Cols>& src, F f) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float value = f(src.x[b][2 * half], src.x[b][2 * half + 1]);
#pragma unroll
      for (int e = 4 + 2 * half; e < Cols / 2; e += 4) value = f(value, f(src.x[b][e], src.x[b][e + 1]));
      value = f(value, __shfl_xor_sync(0xffffffffu, value, 1));
      dst.x[2 * b + half] = f(value, __shfl_xor_sync(0xffffffffu, value, 2));
    }
}
template <int Rows, int Cols>
TK_DEVICE void row_max(rv<float, Rows, Spread::across>& dst, const rt_fl<Rows, Cols>& src) {
  reduce_rows(dst, src, [](float x, float y) { return fmaxf(x, y); });
}
template <int Rows, int Cols>
TK_DEVICE void row_sum(rv<float, Rows, Spread::across>& dst, const rt_fl<Rows, Cols>& src) {
  reduce_rows(dst, src, [](float x, float y) { return x + y; });
}
template <int Rows, class F>
TK_DEVICE void map(rv<float, Rows, Spread::across>& dst, const rv<float, Rows, Spread::across>& src, F f) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) dst.x[2 * b + half] = f(src.x[2 * b + half]);
}

// Conversions.
template <class T, int Rows, int Cols>
  requires is_16bit<T>
TK_DEVICE void copy(rt<T, Rows, Cols>& dst, const rt_fl<Rows, Cols>& src) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int p = 0; p < Cols / 4; ++p) dst.x[b][p] = ptx::pack<T>(src.x[b][2 * p], src.x[b][2 * p + 1]);
}
template <class T, int Rows, int Cols>
  requires is_16bit<T>
TK_DEVICE void copy(rt_fl<Rows, Cols>& dst, const rt<T, Rows, Cols>& src) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int p = 0; p < Cols / 4; ++p) {
      dst.x[b][2 * p] = ptx::low<T>(src.x[b][p]);
      dst.x[b][2 * p + 1] = ptx::high<T>(src.x[b][p]);
    }
}

// Columns first .. first + Part - 1 of a tile; `first` must be known when compiling, or the tile leaves registers.
template <int Rows, int Part, int Cols>
TK_DEVICE void columns(rt_fl<Rows, Part>& dst, const rt_fl<Rows, Cols>& src, int first) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int e = 0; e < Part / 2; ++e) dst.x[b][e] = src.x[b][first / 2 + e];
}

}  // namespace tk
