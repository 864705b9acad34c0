// fft_conv: y = post (conv(v, k, k_reverse) + skip v), v = pre u      per (batch, channel) row of L <= M samples
// in   u, pre, post [B,H,L] bf16 or fp16, samples contiguous | skip [H] f32, spectrum [H,M] complex f32 (spectrum.cu)
// out  y of u's type; with post2 and out2 a second gate of the same convolution (the gradients of u and of pre)
// kernels  fft_conv_<M>: M = 256 .. 16384 complex points for 2 M real samples, factors in params.h
// grid  a CTA a row, the batch inside the channels: rows of one channel run together and find its spectrum in L2
// flow  gl u, pre --16 B--> registers -> v -> st (first) | second | third, times spectrum, third back | second back |
//       last -> registers -> gates, skip (u, pre once more, out of L2) --16 B--> gl; | is __syncthreads. transform.cuh
//       has the mathematics. No ring: several CTAs of an SM are at different passes, and one waits for memory at its ends
// precision  products of two bf16 terms (1e-5 of the norm of a row), the rest float, one rounding at the end
// limits  L <= 16384, long.cu takes longer rows. Rows that do not begin at 16 bytes are read sample by sample
// cost  bytes 2 (2 + gates) L a row and 8 M a channel; flops 24 M (N1 + 2 N2 + 2 N3), N2 absent for two factors: at
//       M = 4096 7.9 MFLOP for 16 KiB of u and y, or 32 with gates
#include "filter.cuh"
#include "rows.cuh"

namespace tkpy::fft_conv {

template <int Index>
struct Convolution : Transform<Index> {
  using Base = Transform<Index>;
  using Base::Base;
  using Base::M;

  TK_DEVICE void run(const ConvParams& p) const {
    const int batch = static_cast<int>(blockIdx.x) % p.batch, channel = static_cast<int>(blockIdx.x) / p.batch;
    const auto row = [&](const Rows& rows) { return Row(rows, batch, channel, p.length, p.half != 0); };
    const Gated v{row(p.u), row(p.pre)};
    Base::template first<false>([&](float(&x)[8], int, int n) { v.load(x, n); });
    Base::to_values();
    const float4* spectrum = static_cast<const float4*>(p.spectrum) + static_cast<long long>(channel) * (M / 2);
    filter(*this, spectrum, p.correlate != 0);
    Base::from_values();
    const Row post = row(p.post), post2 = row(p.post2), out = row(p.out), out2 = row(p.out2);
    const float skip = p.skip ? p.skip[channel] : 0.0f;
    Base::last_real([&](float(&x)[8], int n) {
      if (n >= p.length) return;
      if (p.skip) {
        float direct[8];
        v.load(direct, n);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = fmaf(skip, direct[i], x[i]);
      }
      store_gated(out, post, x, n);
      if (out2.data) store_gated(out2, post2, x, n);
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
