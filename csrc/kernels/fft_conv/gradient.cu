// fft_conv_gradient_<M>: dk[j] = sum_b sum_t g[t] v[t - j],  dk_reverse[j - 1] = sum_b sum_t g[t] v[t + j]   per channel
// in   v = pre u, g = post dy: [B,H,L] bf16 or fp16, samples contiguous; L <= M
// out  [shares, H, used], [shares, H, used_reverse] f32: sums over a share of the batch. That of lag 0 is also the
//      gradient of the skip
// flow  for every row of the share: v -> values, kept; g -> values, times the conjugate of v's, added up. Then one
//       inverse transform, complex: its real parts are the lags 0, 1, .., its imaginary parts those that wrapped
//       (spectrum.cu). A thread keeps and adds its own values: in registers, from M = 8192 on in global memory
// grid  channels * shares; the order of all sums is fixed: same call, same bits
// cost  bytes 4 L a row (8 with gates); flops of two forward transforms a row, products of two terms as in transform.cuh
#include "gradient.cuh"

namespace tkpy::fft_conv {

template <int Index>
TK_DEVICE void gradient(const GradientParams& p, const void* memory) {
  using G = Gradient<Index>;
  const G of(memory, p.tables);
  const int channel = static_cast<int>(blockIdx.x) % p.channels;
  const Share share(static_cast<int>(blockIdx.x) / p.channels, p.shares, p.batch);
  typename G::Kept sum;
  const auto source = [&](int batch, bool second) {
    const auto row = [&](const Rows& all) { return Row(all, batch, channel, p.length, p.half != 0); };
    const Gated rows{row(second ? p.dy : p.u), row(second ? p.post : p.pre)};
    return [=](float(&x)[8], int, int n) { rows.load(x, n); };
  };
  of.template add_up<false>(sum, static_cast<float4*>(p.scratch) + static_cast<long long>(blockIdx.x) * G::M, share.begin,
                            share.end, source);
  constexpr float scale = 1.0f / G::M;
  const long long row = blockIdx.x;
  of.back(sum, scale, [&](const float2(&z)[2], int n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int lag = n + e, back = G::M - lag;
      if (lag < p.used) p.dk[row * p.used + lag] = z[e].x;
      if (back <= p.used_reverse) p.dk_reverse[row * p.used_reverse + back - 1] = z[e].y;
    }
  });
}

}  // namespace tkpy::fft_conv

#define TKPY_GRADIENT(M, INDEX)                                                             \
  extern "C" __global__ void __launch_bounds__(tkpy::fft_conv::kPlans[INDEX].threads())     \
      fft_conv_gradient_##M(const __grid_constant__ tkpy::fft_conv::GradientParams p) {     \
    extern __shared__ __align__(1024) unsigned char memory[];                               \
    tkpy::fft_conv::gradient<INDEX>(p, memory);                                            \
  }
TKPY_GRADIENT(256, 0)
TKPY_GRADIENT(1024, 1)
TKPY_GRADIENT(2048, 2)
TKPY_GRADIENT(4096, 3)
TKPY_GRADIENT(8192, 4)
TKPY_GRADIENT(16384, 5)
