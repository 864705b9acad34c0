// The middle of a convolution: the third pass, its values times those of the taps, and the third pass back; and where
// the values of the taps come from.
#pragma once

#include "transform.cuh"

namespace tkpy::fft_conv {

// A pair of neighbouring values of a unit, times a factor.
template <class Values>
TK_DEVICE float4 pair_of(const Values& z, int b, int half, float scale) {
  return make_float4(scale * z.re[b][2 * half], scale * z.im[b][2 * half], scale * z.re[b][2 * half + 1],
                     scale * z.im[b][2 * half + 1]);
}

// Values of the taps at those of a unit, as fft_conv_spectrum leaves them, or what a spectrum elsewhere `get`s: on their way
// while the unit is transformed.
template <int Index>
struct Taps {
  float4 x[Transform<Index>::chunks][2];
  TK_DEVICE Taps(const float4* spectrum, int unit) {
#pragma unroll
    for (int b = 0; b < Transform<Index>::chunks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) x[b][half] = __ldg(spectrum + Transform<Index>::value_at(unit, b, half));
  }
  template <class Spectrum>
  TK_DEVICE Taps(const Spectrum& spectrum, int unit) {
    spectrum.get(x, unit);
  }
};

// Values of a unit times those of the taps; sign -1: their conjugates, of the adjoint.
template <int Index>
TK_DEVICE void times_taps(const Transform<Index>&, typename Transform<Index>::Values& z, const Taps<Index>& taps, float sign) {
  using F = Transform<Index>;
#pragma unroll
  for (int b = 0; b < F::chunks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4& pair = taps.x[b][half];
      float &r0 = z.re[b][2 * half], &r1 = z.re[b][2 * half + 1], &i0 = z.im[b][2 * half], &i1 = z.im[b][2 * half + 1];
      const float2 x = times({r0, i0}, {pair.x, sign * pair.y}), y = times({r1, i1}, {pair.z, sign * pair.w});
      r0 = x.x, i0 = x.y, r1 = y.x, i1 = y.y;
    }
}

// Spectrum: of the row's channel, what Taps are read from.
template <int Index, class Spectrum>
TK_DEVICE void filter(const Transform<Index>& transform, const Spectrum& spectrum, bool conjugate) {
  using F = Transform<Index>;
  const float sign = conjugate ? -1.0f : 1.0f;
  const typename F::Third pass(transform.tables);
#pragma unroll 1
  for (int i = 0; i < F::units; ++i) {
    const int unit = warp_index() + i * F::Warps;
    const Taps<Index> taps(spectrum, unit);
    typename F::Values z;
    transform.third(pass, z, unit);
    times_taps(transform, z, taps, sign);
    transform.third_back(pass, z, unit);
  }
}

// The third pass, and its values times a factor, in the order in which `filter` reads them.
template <int Index>
TK_DEVICE void put_values(const Transform<Index>& transform, float4* out, float scale) {
  using F = Transform<Index>;
  const typename F::Third pass(transform.tables);
#pragma unroll 1
  for (int i = 0; i < F::units; ++i) {
    const int unit = warp_index() + i * F::Warps;
    typename F::Values z;
    transform.third(pass, z, unit);
#pragma unroll
    for (int b = 0; b < F::chunks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) out[F::value_at(unit, b, half)] = pair_of(z, b, half, scale);
  }
}

}  // namespace tkpy::fft_conv
