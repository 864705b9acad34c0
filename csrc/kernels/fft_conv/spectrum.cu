// fft_conv_spectrum_<M>: the values of a circle of taps at M frequencies, over M          per channel
// in   k [H, taps], k_reverse [H, taps_reverse] f32: of lag 0, 1, .. and of lag -1, -2, .. | skip [H] f32, added at lag 0
// out  [H, M] complex f32 in the order in which fft_conv_<M> reads it: by units of the third pass, then lanes
// A tap of lag -j is sample 2 M - j of the circle, which wraps with a minus sign: z at M - j is its imaginary part. The
// factor 1/M of the inverse transform is here. grid a CTA a channel; passes, barriers, precision as in transform.cuh
// cost  bytes 4 (taps + taps_reverse) + 8 M a channel: once for all rows of the batch, or less (kept between calls)
#include "entries.cuh"
#include "filter.cuh"

namespace tkpy::fft_conv {

template <int Index>
TK_DEVICE void spectrum(const SpectrumParams& p, const void* memory) {
  using F = Transform<Index>;
  const F transform(memory, p.tables);
  const long long channel = blockIdx.x;
  transform.template first<true>([&](float(&x)[8], int im, int n) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (im == 0) {
        x[i] = n + i < p.used ? p.k[channel * p.taps + n + i] : 0.0f;
        if (i == 0 && n == 0 && p.skip) x[i] += p.skip[channel];
      } else {
        const int j = F::M - (n + i);
        x[i] = j <= p.used_reverse ? p.k_reverse[channel * p.taps_reverse + j - 1] : 0.0f;
      }
    }
  });
  transform.to_values();
  constexpr float scale = 1.0f / F::M;
  put_values(transform, static_cast<float4*>(p.spectrum) + channel * (F::M / 2), scale);
}

}  // namespace tkpy::fft_conv

// 16 warps on a multiprocessor, of up to 128 registers.
#define TKPY_SPECTRUM(M, INDEX)                                                                              \
  TKPY_ENTRY(fft_conv_spectrum_##M, SpectrumParams, spectrum<INDEX>(p, memory), TKPY_PLAN_THREADS(INDEX),    \
             512 / TKPY_PLAN_THREADS(INDEX))
TKPY_EVERY_PLAN(TKPY_SPECTRUM)
