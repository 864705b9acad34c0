// hyena_filter: the taps of a long convolution from a sine network of the lag.
//
//   a_0 = W_in x + b_in, a_n = W_n sin(f a_{n-1}) + b_n;  taps = (W_out sin(f a_N)) exp(-|decay| t)
//
// data flow  a CTA takes 64 lags through all layers, then W_out by rounds of 128 channels: products of network.cuh
// barriers  __syncthreads of all 256 threads: before h is put, all have read the old one; after it (publish), all have
//           written it. Rounds of channels need none: h stays. Warpgroups without rows only take part in these
// precision network.cuh
// limits    E, W <= 128; an infinite weight gives NaN (its lo part does)
// cost      flops 2 L (E + N W + D) W, tensor cores do three times that; bytes 4 D L, weights come from L2 once a CTA.
//           For 8,192 lags, D = 768, W = 128: 26 MB, 8 us at 3.35 TB/s; 6.5 Gflop, 13 us of the tensor cores at 494 Tflop/s;
//           68 MB out of L2. 64 KB of shared memory: two CTAs an SM, one computes while the other waits for weights
#include "network.cuh"

namespace tkpy::hyena_filter {

TK_DEVICE void forward(const Params& p, Turned& h, int lag) {
  const int row = first_row(), rounds = (p.channels + kWidth - 1) / kWidth;
  Result d;
  load_features(p, d, lag);
  for (int n = 0; n <= p.layers + rounds; ++n) {
    if (n <= p.layers + 1) {
      __syncthreads();
      put(h, d);
      publish();
    }
    const int channel = (n - p.layers - 1) * kWidth;
    const bool inside = n <= p.layers;
    zero(d);
    product(d, h, inside ? layer(p, n) : output(p), inside ? 0 : channel, 0, n == 0 ? p.features_n : p.width);
    if (inside) {
      Result::per_row b;
      load(b, bias(p, n), row);
      add(d, d, b);
      sine(p, d);
    } else {
      Window(p, channel, lag).apply(d);
      store(view<float>{p.taps, p.channels, p.lags, p.lags}, d, channel + row, lag);
    }
  }
}

}  // namespace tkpy::hyena_filter

#define TKPY_HYENA_FILTER(NAME)                                                              \
  extern "C" __global__ void __launch_bounds__(tkpy::hyena_filter::kThreads, 2)              \
      hyena_filter_##NAME(const __grid_constant__ tkpy::hyena_filter::Params p) {            \
    extern __shared__ __align__(1024) unsigned char memory[];                                \
    tkpy::hyena_filter::NAME(p, *reinterpret_cast<tkpy::hyena_filter::Turned*>(memory),      \
                             static_cast<int>(blockIdx.x) * tkpy::hyena_filter::kLags);      \
  }
TKPY_HYENA_FILTER(forward)
