// hyena_filter: the taps of a long convolution from a sine network of the lag, and the gradient of that.
//
// forward   a_0 = W_in x + b_in, a_n = W_n sin(f a_{n-1}) + b_n;  taps = (W_out sin(f a_N)) exp(-|decay| t), or (for the
//           backward) the sums a_n themselves
// backward  dh_N = W_out^T (dtaps window);  da_n = dh_n f cos(f a_n), dh_{n-1} = W_n^T da_n, dx = W_in^T da_0;
//           df = sum over lags of dh_n cos(f a_n) a_n, of which each CTA leaves a share. The gradients of the weights,
//           sums over all lags, are products of da_n and h_n that torch makes
//
// data flow  a CTA takes 64 lags. Every product is the same: D [128 x 64 lags] = weights [128 x K] times h^T, h [64 x K] in
//           shared memory with K along its rows, as wgmma wants tf32; warpgroup g has rows 64 g .. of D in registers. Its
//           sine goes back to h, turned, by scalar stores that the 128-byte swizzle keeps free of bank conflicts.
//           Channels (the rows of W_out; in the backward its K) go by in rounds of 128.
// order     put: all have read the old h (barrier), all write.  product: all have put and nobody reads the old weights
//           (barrier), all load weights and split them, publish, barrier, wgmma, wait.
// precision float32 as three tf32 products, x = hi + lo: hi hi + hi lo + lo hi, 2^-21 of a term; sums fp32. Sines by
//           reduction with pi/2 in three parts: 2^-23 for phases up to 2^20, which is where they stop to mean much
// limits    E, W <= 128; an infinite weight gives NaN (its lo part does)
// cost      flops 2 L (E + N W + D) W, tensor cores do three times that in tiles of 128; bytes 4 D L, weights come from L2
//           once a CTA. 192 KB of shared memory: one CTA an SM, 132 of them cover 8448 lags
#include "tk/tk.cuh"

#include "params.h"

namespace tkpy::hyena_filter {

using namespace tk;
using Block = group<kThreads / 32>;
using Result = rt_fl<16, kLags>;  // of a warp

struct Shared {
  st<tf32, kWidth, kWidth> weights_hi, weights_lo;
  st<tf32, kLags, kWidth> h_hi, h_lo;
};
static_assert(sizeof(Shared) == kSharedBytes);

// sin(x + quarters pi / 2).
TK_DEVICE float circular(float x, int quarters) {
  const float n = rintf(x * 0.636619772f);
  float r = fmaf(n, -1.57079637f, x);
  r = fmaf(n, 4.37113883e-8f, r);
  r = fmaf(n, 1.71512451e-15f, r);
  const float s = r * r;
  const float sine = fmaf(r * s, fmaf(s, fmaf(s, -1.95152959e-4f, 8.33216087e-3f), -0.166666546f), r);
  const float cosine = fmaf(s * s, fmaf(s, fmaf(s, 2.44331571e-5f, -1.38873162e-3f), 4.16666456e-2f), fmaf(s, -0.5f, 1.0f));
  const int quadrant = static_cast<int>(n) + quarters;
  const float value = quadrant & 1 ? cosine : sine;
  return quadrant & 2 ? -value : value;
}

// The first row of the result that this warp holds.
TK_DEVICE int first_row() { return 16 * warp_index(); }

// lo holds float32: hi = its first bits, lo = what is left.
template <class Tile>
TK_DEVICE void split(Tile& hi, Tile& lo) {
  copy<Block>(hi, lo);
  sub<Block>(lo, lo, hi);
}

// h = d^t.
TK_DEVICE void put(Shared& s, const Result& d) {
  __syncthreads();
#pragma unroll
  for (int e = 0; e < Result::elements; ++e) {
    const int lag = Result::col(0, e), row = first_row() + Result::row(0, e);
    tf32 hi, lo;
    write(&hi, d.get(0, e));
    write(&lo, d.get(0, e) - read(&hi));
    s.h_hi.at(lag, row) = hi;
    s.h_lo.at(lag, row) = lo;
  }
}

// A matrix of weights and the part of it that a product takes: all rows from `row` on, columns col .. col + depth - 1.
struct Factor {
  const float* data;
  int rows, cols, row, col, depth;
};

// d += weights h^t.
TK_DEVICE void product(Result& d, Shared& s, const Factor& f) {
  __syncthreads();
  load<Block>(s.weights_lo, view<const tf32>{reinterpret_cast<const tf32*>(f.data), f.rows, f.cols, f.cols}, f.row, f.col);
  split(s.weights_hi, s.weights_lo);
  publish_tile();
  __syncthreads();
  const int above = 64 * warpgroup_index();
#pragma unroll 1
  for (int k = 0; k < f.depth; k += 32) {
    const auto a_hi = subtile<64, 32>(s.weights_hi, above, k), a_lo = subtile<64, 32>(s.weights_lo, above, k);
    const auto b_hi = subtile<kLags, 32>(s.h_hi, 0, k), b_lo = subtile<kLags, 32>(s.h_lo, 0, k);
    mma_fence();
    mma_ABt(d, a_hi, b_hi);
    mma_ABt(d, a_hi, b_lo);
    mma_ABt(d, a_lo, b_hi);
    mma_commit();
    mma_wait(d);
  }
}

// d times exp(-|decay| t), the channels from `channel` on.
TK_DEVICE void window(const Params& p, Result& d, int channel, int lag) {
  Result::per_row rate;
  Result::per_col time;
  Result factor;
  load(rate, vec_view<const float>{p.decay, p.channels}, channel + first_row());
  load(time, vec_view<const float>{p.times, p.lags}, lag);
  abs(rate, rate);
  broadcast(factor, time);
  mul(factor, factor, rate);
  neg(factor, factor);
  exp(factor, factor);
  mul(d, d, factor);
}

// Layer by layer, then channels in rounds.
TK_DEVICE void forward(const Params& p, Shared& s, int lag) {
  const int row = first_row(), width = p.width;
  load<Block>(s.h_lo,
              view<const tf32>{reinterpret_cast<const tf32*>(p.features), p.lags, p.features_n, p.feature_stride[0],
                               p.feature_stride[1]},
              lag, 0);
  split(s.h_hi, s.h_lo);
  Result d;
  Result::per_row frequency, bias;
  load(frequency, vec_view<const float>{p.frequency, width}, row);
  const int rounds = p.taps ? (p.channels + kWidth - 1) / kWidth : 0;
  for (int n = 0; n <= p.layers + rounds; ++n) {
    const int channel = (n - p.layers - 1) * kWidth;
    Factor weights{p.output, p.channels, width, channel, 0, width};
    if (n <= p.layers) weights = {p.hidden + (n - 1) * width * width, width, width, 0, 0, width};
    if (n == 0) weights = {p.input, width, p.features_n, 0, 0, p.features_n};
    zero(d);
    product(d, s, weights);
    if (n > p.layers) {
      window(p, d, channel, lag);
      store(view<float>{p.taps, p.channels, p.lags, p.lags}, d, channel + row, lag);
      continue;
    }
    load(bias, vec_view<const float>{n == 0 ? p.input_bias : p.hidden_bias + (n - 1) * width, width}, row);
    add(d, d, bias);
    if (!p.taps) store(view<float>{p.sums + 1ll * n * width * p.lags, width, p.lags, p.lags}, d, row, lag);
    mul(d, d, frequency);
    map(d, d, [](float phase) { return circular(phase, 0); });
    put(s, d);
  }
}

// d, the gradient of layer n's sine, becomes that of its sum.
TK_DEVICE void through_sine(const Params& p, Result& d, Result::per_row& share, int n, int lag) {
  const view<float> sums{p.sums + 1ll * n * p.width * p.lags, p.width, p.lags, p.lags};
  const view<float> dsums{p.dsums + 1ll * n * p.width * p.lags, p.width, p.lags, p.lags};
  Result a, slope;
  Result::per_row frequency, sum;
  load(frequency, vec_view<const float>{p.frequency, p.width}, first_row());
  load(a, view<const float>{sums.data, sums.rows, sums.cols, sums.row_stride}, first_row(), lag);
  mul(slope, a, frequency);
  map(slope, slope, [](float phase) { return circular(phase, 1); });
  mul(d, d, slope);
  mul(a, a, d);
  row_sum(sum, a);
  add(share, share, sum);
  mul(d, d, frequency);
  store(dsums, d, first_row(), lag);
}

// Channels in rounds, then back through the layers.
TK_DEVICE void backward(const Params& p, Shared& s, int lag) {
  const int row = first_row(), width = p.width, rounds = (p.channels + kWidth - 1) / kWidth;
  Result d, ahead;
  Result::per_row share;
  zero(d);
  zero(share);
  for (int step = 0; step <= rounds + p.layers; ++step) {
    const int n = rounds + p.layers - step, channel = step * kWidth;
    Factor weights{p.output, width, p.channels, 0, channel, min(kWidth, p.channels - channel)};
    if (step < rounds) {
      load(ahead, view<const float>{p.taps, p.channels, p.lags, p.lags}, channel + row, lag);
      window(p, ahead, channel, lag);
      put(s, ahead);
    } else {
      weights = {n > 0 ? p.hidden + (n - 1) * width * width : p.input, n > 0 ? width : p.features_n, width, 0, 0, width};
      through_sine(p, d, share, n, lag);
      put(s, d);
      zero(d);
    }
    product(d, s, weights);
  }
  store(view<float>{p.dfeatures, p.features_n, p.lags, p.lags}, d, row, lag);
  store(vec_view<float>{p.shares + 1ll * blockIdx.x * width, width}, share, row);
}

}  // namespace tkpy::hyena_filter

#define TKPY_HYENA_FILTER(NAME)                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::hyena_filter::kThreads, 1)                        \
      hyena_filter_##NAME(const __grid_constant__ tkpy::hyena_filter::Params p) {                      \
    extern __shared__ __align__(1024) unsigned char memory[];                                          \
    tkpy::hyena_filter::NAME(p, *reinterpret_cast<tkpy::hyena_filter::Shared*>(memory),                \
                             static_cast<int>(blockIdx.x) * tkpy::hyena_filter::kLags);                \
  }
TKPY_HYENA_FILTER(forward)
TKPY_HYENA_FILTER(backward)
