// fft_conv of rows longer than a CTA holds: N0 M' complex points, N0 = 16 .. 256 of M' = 2048, 4096 or 16384
//   fft_conv_long_in          u, pre --> work: over n0, at frequencies j0 + 1/4, times w^(n' (j0 + 1/4))
//   fft_conv_long_inner_<M'>  work --> work: a row (b, h, j0) of M' through `first` .. `last` at whole frequencies, complex
//   fft_conv_long_out         work --> out: the conjugate factors, over j0 back, skip and gates
// in   u, pre, post [B,H,L] bf16 or fp16 | skip [H] f32, spectrum [H,N0,M'] complex f32      out  y, and out2 by post2
// work [B,H,N0,2,M'] f32: 8 bytes a sample, four times. Overlap and save would multiply every chunk's values with those of
//      all chunks of the filter before it: 8 L / M' bytes a sample out of L2 for filters as long as the row
// in, out  a CTA to 64 columns n' of a row: staged in shared memory in two bf16 terms (rows n0 or j0 of 128 bytes, chunks
//      of 16 permuted by the row), __syncthreads, then warp w takes the tiles of 16 rows w, w + 8, .. of the product;
//      fragments of the matrix come out of L2, 64 columns share them. Twiddles by sincospi: exact phases below 2^24
// precision  as in transform.cuh, work in float
// cost  bytes 36 L a row and the gates (in 10, inner 16, out 10); flops 24 N0 a sample for in and out together
#include "filter.cuh"
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
TK_DEVICE float2 outer_twiddle(const LongParams& p, int column, int j0) {
  const float turns = static_cast<float>(column * (4 * j0 + 1)) * p.half_turn;
  float sine, cosine;
  sincospif(turns, &sine, &cosine);
  return {cosine, -sine};
}

// What a CTA of the outer passes works on.
struct OuterTask {
  int batch, channel, column;
  float* work;
  TK_DEVICE explicit OuterTask(const LongParams& p) {
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

TK_DEVICE void long_in(const LongParams& p, const void* memory) {
  const OuterTask t(p);
  const OuterStrip strip{ptx::shared_address(memory), p.outer};
  const Gated v{t.row(p, p.u), t.row(p, p.pre)};
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < 8 * p.outer; i += 32 * kOuterWarps) {
    float x[8];
    v.load(x, i / 8 * p.inner + t.column + i % 8 * 8);
    strip.put(0, 1, i / 8, i % 8, x);
  }
  __syncthreads();
  const int lane = lane_index();
#pragma unroll 1
  for (int m = warp_index(); m < p.outer / 8; m += kOuterWarps) {
    float acc[8][4];
    strip.product<false>(acc, p.matrix, m);
    const int j0 = 8 * m + lane / 4;
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
}

TK_DEVICE void load_floats(float (&x)[8], const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

template <int Index>
TK_DEVICE void long_inner(const LongParams& p, const void* memory) {
  using F = Transform<Index>;
  const F transform(memory, p.tables);
  const int batch = static_cast<int>(blockIdx.x) % p.batch, group = static_cast<int>(blockIdx.x) / p.batch;
  float* work = p.work + (static_cast<long long>(batch) * p.channels * p.outer + group) * 2 * F::M;
  transform.template first<true>([&](float(&x)[8], int im, int n) { load_floats(x, work + im * F::M + n); });
  transform.to_values();
  filter(transform, static_cast<const float4*>(p.spectrum) + static_cast<long long>(group) * (F::M / 2), p.correlate != 0);
  transform.from_values();
  transform.last([&](const float2(&z)[2], int n) {
    *reinterpret_cast<float2*>(work + n) = make_float2(z[0].x, z[1].x);
    *reinterpret_cast<float2*>(work + F::M + n) = make_float2(z[0].y, z[1].y);
  });
}

TK_DEVICE void long_out(const LongParams& p, const void* memory) {
  const OuterTask t(p);
  const OuterStrip strip{ptx::shared_address(memory), p.outer};
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
  __syncthreads();
  const Gated v{t.row(p, p.u), t.row(p, p.pre)};
  const Row post = t.row(p, p.post), post2 = t.row(p, p.post2), out = t.row(p, p.out), out2 = t.row(p, p.out2);
  const float skip = p.skip ? p.skip[t.channel] : 0.0f;
  const int quad = lane_index() % 4;
#pragma unroll 1
  for (int m = warp_index(); m < p.outer / 16; m += kOuterWarps) {
    float acc[8][4];
    strip.product<true>(acc, p.matrix, m);
#pragma unroll
    for (int s = 0; s < 8; s += 2) {
      float x[8];
      gather_row(x, acc[s], acc[s + 1]);
      const int n0 = 16 * m + lane_index() / 4 + 8 * (quad / 2), n = n0 * p.inner + t.column + 8 * (s + quad % 2);
      if (n >= p.length) continue;
      if (p.skip) {
        float direct[8];
        v.load(direct, n);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = fmaf(skip, direct[i], x[i]);
      }
      store_gated(out, post, x, n);
      if (out2.data) store_gated(out2, post2, x, n);
    }
  }
}

}  // namespace tkpy::fft_conv

#define TKPY_LONG(NAME, THREADS, CALL)                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                 \
      fft_conv_long_##NAME(const __grid_constant__ tkpy::fft_conv::LongParams p) {      \
    extern __shared__ __align__(1024) unsigned char memory[];                           \
    tkpy::fft_conv::CALL(p, memory);                                                    \
  }
TKPY_LONG(in, 32 * tkpy::fft_conv::kOuterWarps, long_in)
TKPY_LONG(out, 32 * tkpy::fft_conv::kOuterWarps, long_out)
TKPY_LONG(inner_2048, tkpy::fft_conv::kPlans[2].threads(), long_inner<2>)
TKPY_LONG(inner_4096, tkpy::fft_conv::kPlans[3].threads(), long_inner<3>)
TKPY_LONG(inner_16384, tkpy::fft_conv::kPlans[5].threads(), long_inner<5>)
