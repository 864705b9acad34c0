// fft_conv: y = post (conv(v, k, k_reverse) + skip v), v = pre u      per (batch, channel) row of L <= M samples
// in   u, pre, post [B,H,L] bf16 or fp16, samples contiguous | skip [H] f32, spectrum [H,M] complex f32 (spectrum.cu)
// out  y of u's type; with post2 and out2 a second gate of the same convolution (the gradients of u and of pre)
// kernels  fft_conv_<M>: M = 256 .. 16384 complex points for 2 M real samples, factors in params.h
// grid  a CTA a row, the batch inside the channels: rows of one channel run together and find its spectrum in L2
// flow  gl u, pre --16 B--> registers -> v -> st (first) | second | third, times spectrum, third back | second back |
//       last -> registers -> gates, skip (u, pre once more, out of L2) --16 B--> gl; | is __syncthreads. transform.cuh
//       has the mathematics. No ring: several CTAs of an SM are at different passes, and one waits for memory at its ends
// precision  products of two bf16 terms (1e-5 of the norm of a row), the rest float, one rounding at the end
// limits  L <= 16384, at least the taps that count. Rows that do not begin at 16 bytes are read sample by sample
// cost  bytes 2 (2 + gates) L a row and 8 M a channel; flops 48 M (N1 + 2 N2 + 2 N3), N2 absent for two factors: at
//       M = 4096 16 MFLOP a row, 26 ns of an H100's mma.sync where its memory takes 5 (10 with gates)
#include "rows.cuh"

namespace tkpy::fft_conv {

template <int Index>
struct Convolution : Transform<Index> {
  using Base = Transform<Index>;
  using Base::chunks, Base::units, Base::M, Base::Warps;
  using Base::Base;

  // The values of the row times those of the taps.
  TK_DEVICE void filter(const ConvParams& p, int channel) const {
    const float4* spectrum = static_cast<const float4*>(p.spectrum) + static_cast<long long>(channel) * (M / 2);
    const float sign = p.correlate ? -1.0f : 1.0f;
    const typename Base::Third pass(Base::tables);
#pragma unroll 1
    for (int i = 0; i < units; ++i) {
      const int unit = warp_index() + i * Warps;
      typename Base::Values z;
      Base::third(pass, z, unit);
#pragma unroll
      for (int b = 0; b < chunks; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float4 pair = __ldg(spectrum + Base::value_at(unit, b, e / 2));
          const float2 tap = e % 2 ? make_float2(pair.z, sign * pair.w) : make_float2(pair.x, sign * pair.y);
          const float2 x = times({z.re[b][e], z.im[b][e]}, tap);
          z.re[b][e] = x.x;
          z.im[b][e] = x.y;
        }
      Base::third_back(pass, z, unit);
    }
  }

  TK_DEVICE void run(const ConvParams& p) const {
    const int batch = static_cast<int>(blockIdx.x) % p.batch, channel = static_cast<int>(blockIdx.x) / p.batch;
    const auto row = [&](const Rows& rows) { return Row(rows, batch, channel, p.length, p.half != 0); };
    const Gated v{row(p.u), row(p.pre)};
    Base::template first<false>([&](float(&x)[8], int, int n) { v.load(x, n); });
    Base::to_values();
    filter(p, channel);
    Base::from_values();
    const Row post = row(p.post), post2 = row(p.post2), out = row(p.out), out2 = row(p.out2);
    const float skip = p.skip ? p.skip[channel] : 0.0f;
    const auto gate_and_store = [&](const Row& to, const Row& gate, const float(&x)[8], int n) {
      float y[8];
      if (gate.data) gate.load(y, n);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = gate.data ? y[i] * x[i] : x[i];
      to.store(y, n);
    };
    Base::last_real([&](float(&x)[8], int n) {
      if (n >= p.length) return;
      if (p.skip) {
        float direct[8];
        v.load(direct, n);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = fmaf(skip, direct[i], x[i]);
      }
      gate_and_store(out, post, x, n);
      if (out2.data) gate_and_store(out2, post2, x, n);
    });
  }
};

}  // namespace tkpy::fft_conv

// 16 warps on a multiprocessor, of up to 128 registers.
#define TKPY_CONV(M, INDEX)                                                                                      \
  extern "C" __global__ void __launch_bounds__(tkpy::fft_conv::kPlans[INDEX].threads(),                          \
                                               512 / tkpy::fft_conv::kPlans[INDEX].threads())                    \
      fft_conv_##M(const __grid_constant__ tkpy::fft_conv::ConvParams p) {                                       \
    extern __shared__ __align__(1024) unsigned char memory[];                                                    \
    tkpy::fft_conv::Convolution<INDEX>(memory, p.tables).run(p);                                                 \
  }
TKPY_CONV(256, 0)
TKPY_CONV(1024, 1)
TKPY_CONV(2048, 2)
TKPY_CONV(4096, 3)
TKPY_CONV(8192, 4)
TKPY_CONV(16384, 5)
