// The filters of rows longer than a CTA holds: their spectrum, and their gradients          (long.cu has the rows)
//   fft_conv_long_filter_in          k, k_reverse --> work: over n0, at frequencies j0 + 1/4, times w^(n' (j0 + 1/4))
//   fft_conv_long_filter_values_<M'> work --> spectrum: rows (h, j0) of M' to values, over N0 M'
//   fft_conv_long_filter_out         work, from fft_conv_long_backward_<M'> --> dk, dk_reverse: the conjugate factors,
//                                    over j0 back
// A tap of lag j is the real part of sample j, one of lag -j the imaginary part of sample N0 M' - j (spectrum.cu): both
// outer passes are complex, a CTA to 64 columns n' as in long.cu, with planes re and im in two bf16 terms
// in   k [H, taps], k_reverse [H, taps_reverse], skip [H] f32, contiguous      out  dk [H, used], dk_reverse [H, used_reverse] f32
// barriers, precision  as in long.cu
// limits  N0 = 16 .. 256, M' = 2048, 4096 or 16384
// cost  bytes 28 a point and channel for the spectrum, once for all rows, 12 for the gradients; flops 48 N0 a point of an
//       outer pass
#include "entries.cuh"
#include "filter.cuh"
#include "outer.cuh"

namespace tkpy::fft_conv {

TK_DEVICE void filter_in(const LongFilterParams& p, const void* memory) {
  const OuterTask t(p);
  const OuterStrip strip{ptx::shared_address(memory), p.outer};
  const int points = p.outer * p.inner;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < 8 * p.outer; i += 32 * kOuterWarps) {
    const int n = i / 8 * p.inner + t.column + i % 8 * 8;
    float re[8], im[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int ahead = n + e, back = points - ahead;
      re[e] = ahead < p.used ? p.k[static_cast<long long>(t.channel) * p.taps + ahead] : 0.0f;
      im[e] = back <= p.used_reverse ? p.k_reverse[static_cast<long long>(t.channel) * p.taps_reverse + back - 1] : 0.0f;
    }
    if (n == 0 && p.skip) re[0] += p.skip[t.channel];
    strip.put(0, 2, i / 8, i % 8, re);
    strip.put(1, 3, i / 8, i % 8, im);
  }
  __syncthreads();
#pragma unroll 1
  for (int m = warp_index(); m < p.outer / 8; m += kOuterWarps) {
    float acc[8][4];
    strip.product<true>(acc, p.matrix, m);
    put_work(p, t, acc, m);
  }
}

template <int Index>
TK_DEVICE void filter_values(const LongFilterParams& p, const void* memory) {
  using F = Transform<Index>;
  const F transform(memory, p.tables);
  const long long row = blockIdx.x;
  const float* work = p.work + row * 2 * F::M;
  transform.template first<true>([&](float(&x)[8], int im, int n) { load_floats(x, work + im * F::M + n); });
  transform.to_values();
  put_values(transform, static_cast<float4*>(p.spectrum) + row * (F::M / 2), 1.0f / static_cast<float>(p.outer * F::M));
}

TK_DEVICE void filter_out(const LongFilterParams& p, const void* memory) {
  const OuterTask t(p);
  const OuterStrip strip{ptx::shared_address(memory), p.outer};
  get_work(p, t, strip);
  __syncthreads();
  const int points = p.outer * p.inner, lane = lane_index();
  float* dk = p.dk + static_cast<long long>(t.channel) * p.used;
  float* dk_reverse = p.dk_reverse + static_cast<long long>(t.channel) * p.used_reverse;
#pragma unroll 1
  for (int m = warp_index(); m < p.outer / 8; m += kOuterWarps) {
    float acc[8][4];
    strip.product<true>(acc, p.matrix, m);
#pragma unroll
    for (int s = 0; s < 8; ++s)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int lag = (8 * m + lane / 4) * p.inner + t.column + 8 * s + 2 * (lane % 4) + e, back = points - lag;
        if (lag < p.used) dk[lag] = acc[s][e];
        if (back <= p.used_reverse) dk_reverse[back - 1] = acc[s][2 + e];
      }
  }
}

}  // namespace tkpy::fft_conv

#define TKPY_VALUES(M, INDEX) \
  TKPY_ENTRY(fft_conv_long_filter_values_##M, LongFilterParams, filter_values<INDEX>(p, memory), TKPY_PLAN_THREADS(INDEX))
TKPY_ENTRY(fft_conv_long_filter_in, LongFilterParams, filter_in(p, memory), TKPY_OUTER_THREADS)
TKPY_ENTRY(fft_conv_long_filter_out, LongFilterParams, filter_out(p, memory), TKPY_OUTER_THREADS)
TKPY_EVERY_INNER(TKPY_VALUES)
