// What the kernels of a long row's outer factor share: a strip of 64 columns in shared memory, its product with the
// matrix of the factor, its twiddle factors, and `work` in global memory. long.cu says how they work together.
#pragma once

#include "rows.cuh"

namespace tkpy::fft_conv {

// The strip of a CTA in shared memory: planes of `outer` rows of 64 columns.
struct OuterStrip {
  u32 memory;
  int outer;
  TK_DEVICE u32 place(int plane, int row, int chunk) const {
    return memory + (plane * outer + row) * 2 * kOuterColumns + 16 * (chunk ^ row % 8);
  }
  TK_DEVICE void put(int high, int low, int row, int chunk, const float (&x)[8]) const {
    u32 upper[4], lower[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) split(upper[i], lower[i], x[2 * i], x[2 * i + 1]);
    ptx::st_shared_v4(place(high, row, chunk), make_uint4(upper[0], upper[1], upper[2], upper[3]));
    ptx::st_shared_v4(place(low, row, chunk), make_uint4(lower[0], lower[1], lower[2], lower[3]));
  }
  // acc = row tile m of the matrix times the strip; Complex: planes re, im of the upper, then of the lower terms, 8 rows
  // of both a step; else planes of the upper and of the lower terms, 16 rows a step.
  template <bool Complex>
  TK_DEVICE void product(float (&acc)[8][4], const void* matrix, int m) const {
    const int lane = lane_index(), steps = Complex ? outer / 8 : outer / 16;
#pragma unroll
    for (int s = 0; s < 8; ++s)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[s][e] = 0.0f;
#pragma unroll 1
    for (int k = 0; k < steps; ++k) {
      const uint4 high = table(matrix, 64 * (steps * m + k) + lane), low = table(matrix, 64 * (steps * m + k) + 32 + lane);
      const Operand a = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
      const int row = Complex ? 8 * k + lane % 8 : 16 * k + lane % 16, plane = Complex ? lane / 8 : lane / 16;
#pragma unroll
      for (int s = 0; s < 8; ++s) {
        u32 b[4];
        ptx::ldmatrix_x4_trans(b, place(plane, row, s));
        multiply(acc[s], a, b[0], b[1], b[2], b[3]);
      }
    }
  }
};

// w^(n' (j0 + 1/4)), w = exp(-2 pi i / (N0 M')).
template <class P>
TK_DEVICE float2 outer_twiddle(const P& p, int column, int j0) {
  const float turns = static_cast<float>(column * (4 * j0 + 1)) * p.half_turn;
  float sine, cosine;
  sincospif(turns, &sine, &cosine);
  return {cosine, -sine};
}

// What a CTA of the outer passes works on.
struct OuterTask {
  int batch, channel, column;
  float* work;
  template <class P>
  TK_DEVICE explicit OuterTask(const P& p) {
    const int strips = p.inner / kOuterColumns, row = static_cast<int>(blockIdx.x) / strips;
    batch = row % p.batch;
    channel = row / p.batch;
    column = static_cast<int>(blockIdx.x) % strips * kOuterColumns;
    work = p.work + (static_cast<long long>(batch) * p.channels + channel) * p.outer * 2 * p.inner;
  }
  TK_DEVICE Row row(const LongParams& p, const Rows& rows) const {
    return Row(rows, batch, channel, p.length, p.half != 0);
  }
};

// Row tile m of a product at the frequencies j0 + 1/4, times its twiddle factors, to work.
template <class P>
TK_DEVICE void put_work(const P& p, const OuterTask& t, const float (&acc)[8][4], int m) {
  const int lane = lane_index(), j0 = 8 * m + lane / 4;
#pragma unroll
  for (int s = 0; s < 8; ++s) {
    const int column = t.column + 8 * s + 2 * (lane % 4);
    const float2 x = times({acc[s][0], acc[s][2]}, outer_twiddle(p, column, j0));
    const float2 y = times({acc[s][1], acc[s][3]}, outer_twiddle(p, column + 1, j0));
    float* to = t.work + static_cast<long long>(2 * j0) * p.inner + column;
    *reinterpret_cast<float2*>(to) = make_float2(x.x, y.x);
    *reinterpret_cast<float2*>(to + p.inner) = make_float2(x.y, y.y);
  }
}

TK_DEVICE void load_floats(float (&x)[8], const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

// Complex samples n, n + 1 of an inner row of M, to work.
template <int M>
TK_DEVICE void put_complex(float* row, const float2 (&z)[2], int n) {
  *reinterpret_cast<float2*>(row + n) = make_float2(z[0].x, z[1].x);
  *reinterpret_cast<float2*>(row + M + n) = make_float2(z[0].y, z[1].y);
}

// Work, times the conjugate factors, to planes re, im of the upper terms, then of the lower ones.
template <class P>
TK_DEVICE void get_work(const P& p, const OuterTask& t, const OuterStrip& strip) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < 8 * p.outer; i += 32 * kOuterWarps) {
    const int j0 = i / 8, column = t.column + i % 8 * 8;
    float re[8], im[8];
    load_floats(re, t.work + static_cast<long long>(2 * j0) * p.inner + column);
    load_floats(im, t.work + static_cast<long long>(2 * j0 + 1) * p.inner + column);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float2 z = times_conj({re[e], im[e]}, outer_twiddle(p, column + e, j0));
      re[e] = z.x;
      im[e] = z.y;
    }
    strip.put(0, 2, j0, i % 8, re);
    strip.put(1, 3, j0, i % 8, im);
  }
}

}  // namespace tkpy::fft_conv
