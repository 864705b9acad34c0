// fft_conv: y = post conv(v, k, k_reverse), v = pre u      per (batch, channel) row of L <= M samples
// in   u, pre, post [B,H,L] bf16 or fp16, samples contiguous | spectrum [H,M] complex f32 (spectrum.cu), which has the skip
// out  y of u's type; with post2 and out2 a second gate of the same convolution (the gradients of u and of pre)
// kernels  fft_conv_<M>: M = 256 .. 16384 complex points for 2 M real samples, factors in params.h
// grid  a CTA a row, the batch inside the channels: rows of one channel run together and find its spectrum in L2
// flow  gl u, pre --16 B--> registers -> v -> st (first) | second | third, times spectrum, third back | second back |
//       last -> registers -> gates --16 B--> gl; | is __syncthreads. transform.cuh has the mathematics. No ring: several
//       CTAs of an SM are at different passes, and one waits for memory at its ends
// precision  products of two bf16 terms (1e-5 of the norm of a row), the rest float, one rounding at the end
// limits  L <= 16384, long.cu takes longer rows. Rows that do not begin at 16 bytes are read sample by sample
// cost  bytes 2 (2 + gates) L a row and 8 M a channel; flops 24 M (N1 + 2 N2 + 2 N3), N2 absent for two factors: at
//       M = 4096 7.9 MFLOP for 16 KiB of u and y, or 32 with gates
#include "entries.cuh"
#include "filter.cuh"
#include "rows.cuh"

namespace tkpy::fft_conv {

template <int Index>
struct Convolution : Transform<Index> {
  using Base = Transform<Index>;
  using Base::Base;
  using Base::M;

  TK_DEVICE void run(const ConvParams& p) const {
    const int channel = static_cast<int>(blockIdx.x) / p.batch, batch = static_cast<int>(blockIdx.x) - channel * p.batch;
    const auto row = [&](const Rows& rows) { return Row(rows, batch, channel, p.length, p.half != 0); };
    const Gated v{row(p.u), row(p.pre)};
    Base::template first<false>([&](float(&x)[8], int, int n) {
      (Base::N1 > 16 ? Gated{row(p.u), row(p.pre)} : v).load(x, n);  // 32 rows leave no registers for what may be made anew
    });
    Base::to_values();
    const float4* spectrum = static_cast<const float4*>(p.spectrum) + static_cast<long long>(channel) * (M / 2);
    filter(*this, spectrum, p.correlate != 0);
    Base::from_values();
    const Row out = row(p.out), gate = row(p.post);
    Base::last_real([&](float(&x)[8], int n) {
      if (n >= p.length) return;
      store_gated(out, gate, x, n);
      if (p.out2.data) store_gated(row(p.out2), row(p.post2), x, n);
    });
  }
};

}  // namespace tkpy::fft_conv

// 16 warps on a multiprocessor, of up to 128 registers.
#define TKPY_CONV(M, INDEX)                                                                         \
  TKPY_ENTRY(fft_conv_##M, ConvParams, Convolution<INDEX>(memory, p.tables).run(p), TKPY_PLAN_THREADS(INDEX), \
             512 / TKPY_PLAN_THREADS(INDEX))
TKPY_EVERY_PLAN(TKPY_CONV)
