// hyena_step: one token of a Hyena layer after its projections, z = [x2 | x1 | v] per group of channels
//   x2, x1, v <- bias + sum_j weight_j (last inputs, z)_j     causal filters of a few taps
//   x' = p x + x1 v,   y = x2 (Re sum_s R x' + D x1 v)        S complex states a channel
// in   z [B,3W] and the last inputs [B,3W,taps-1] bf16, fp16 or f32 | weight [3W,taps], bias [3W], D [W] of z's type or f32 |
//      p R [W,S] and x [B,W,S] complex64
// out  y [B,W] and the new last inputs in z's type, x' complex64
// data  four lanes a channel: p, R and the taps stay in registers, what a row needs is asked for before it is used; a lane
//       has two modes of every eight (16 bytes), three lanes a short filter each, whose outputs all four get by shuffles
// grid  (32 channels a CTA, rows): as many rows side by side as fill the GPU, each CTA takes every n-th
// precision  short filters and gates fp32, states and their sum double, all rounded once; sums in an order that does not vary
// limits  S <= 32, taps <= 8; an odd S or address moves in pieces of 8 bytes
// cost  bytes 16 S a channel and row for the states, 16 S a channel for p and R, 3 (2 taps - 1) + 1 elements: bound by memory
#include "kernels/rows/rows.cuh"
#include "params.h"

namespace tkpy::hyena_step {

using namespace tk;

template <class T, int Modes>
struct Step {
  static constexpr int kEach = Modes / (2 * kLanes);  // pairs of modes in a lane
  using Pairs = float[kEach][4];                      // re, im, re, im

  const Params& p;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int channel = static_cast<int>(blockIdx.x) * kChannels + static_cast<int>(threadIdx.x) / kLanes;
  const bool live = channel < p.width, filters = live && lane < 3;
  // This lane's channel of z: part `lane` of its group.
  const int input = (channel / p.part * 3 + lane) * p.part + channel % p.part;
  const int kept = p.taps - 1;

  TK_DEVICE int mode(int i) const { return 2 * (lane + kLanes * i); }

  TK_DEVICE void fetch(Pairs& x, const Complex* from, long long row) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int s = mode(i);
#pragma unroll
      for (float& each : x[i]) each = 0.0f;
      if (!live || !from || s >= p.modes) continue;
      const Complex* at = from + row * p.modes + s;
      if (p.pairs) {
        const uint4 two = ptx::ld_global_v4(at);
        const u32 word[] = {two.x, two.y, two.z, two.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) x[i][j] = __uint_as_float(word[j]);
      } else {
        x[i][0] = at[0].re, x[i][1] = at[0].im;
        if (s + 1 < p.modes) x[i][2] = at[1].re, x[i][3] = at[1].im;
      }
    }
  }
  TK_DEVICE void leave(const Pairs& x, long long row) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int s = mode(i);
      if (!live || s >= p.modes) continue;
      Complex* at = p.end + row * p.modes + s;
      if (p.pairs) {
        ptx::st_global_v4(at, make_uint4(__float_as_uint(x[i][0]), __float_as_uint(x[i][1]), __float_as_uint(x[i][2]), __float_as_uint(x[i][3])));
      } else {
        at[0] = {x[i][0], x[i][1]};
        if (s + 1 < p.modes) at[1] = {x[i][2], x[i][3]};
      }
    }
  }

  TK_DEVICE static float one_of(const rows::Vector& x, int i, bool some) {
    float value[1];
    rows::parameters<T>(value, x, i, some ? i + 1 : 0, 0.0f);
    return value[0];
  }

  // A short filter: its taps, the one of the new input last; its last inputs.
  struct Filter {
    float tap[kMostTaps - 1], last, bias;
  };
  struct Inputs {
    float before[kMostTaps], now;  // before[kMostTaps - 1] is never one
  };
  TK_DEVICE void fetch(Filter& f) const {
#pragma unroll
    for (int j = 0; j < kMostTaps - 1; ++j) f.tap[j] = one_of(p.weight, input * p.taps + j, filters && j < kept);
    f.last = one_of(p.weight, input * p.taps + kept, filters);
    f.bias = one_of(p.bias, input, filters);
  }
  TK_DEVICE long long row_of(int b) const { return static_cast<long long>(b) * 3 * p.width + input; }
  TK_DEVICE void fetch(Inputs& x, int b) const {
    const T* before = static_cast<const T*>(p.before) + row_of(b) * kept;
#pragma unroll
    for (int j = 0; j < kMostTaps; ++j) x.before[j] = filters && p.before && j < kept ? read(before + j) : 0.0f;
    x.now = filters ? read(static_cast<const T*>(p.z) + row_of(b)) : 0.0f;
  }
  TK_DEVICE void leave(const Inputs& x, int b) const {
    if (!filters) return;
    T* after = static_cast<T*>(p.after) + row_of(b) * kept;
#pragma unroll
    for (int j = 0; j < kMostTaps - 1; ++j)
      if (j < kept) write(after + j, j + 1 < kept ? x.before[j + 1] : x.now);
  }
  TK_DEVICE static float apply(const Filter& f, const Inputs& x) {
    float sum = fmaf(f.last, x.now, f.bias);
#pragma unroll
    for (int j = 0; j < kMostTaps - 1; ++j) sum = fmaf(f.tap[j], x.before[j], sum);
    return sum;
  }

  // x' from x, and this lane's part of Re sum R x'.
  TK_DEVICE static double advance(Pairs& x, const Pairs& pole, const Pairs& residue, double now) {
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const double pr = pole[i][j], pi = pole[i][j + 1], xr = x[i][j], xi = x[i][j + 1];
        const double re = pr * xr - pi * xi + now, im = pr * xi + pi * xr;
        sum += residue[i][j] * re - residue[i][j + 1] * im;
        x[i][j] = static_cast<float>(re);
        x[i][j + 1] = static_cast<float>(im);
      }
    return sum;
  }

  TK_DEVICE void run() const {
    Pairs pole, residue, x;
    Filter filter;
    Inputs inputs;
    fetch(pole, p.poles, channel);
    fetch(residue, p.residues, channel);
    fetch(filter);
    const float skip = one_of(p.skip, channel, live);
#pragma unroll 1
    for (int b = static_cast<int>(blockIdx.y); b < p.batch; b += static_cast<int>(gridDim.y)) {
      const long long row = static_cast<long long>(b) * p.width + channel;
      fetch(x, p.start, row);
      fetch(inputs, b);
      const float filtered = apply(filter, inputs);
      leave(inputs, b);
      const float x2 = __shfl_sync(0xffffffffu, filtered, 0, kLanes), x1 = __shfl_sync(0xffffffffu, filtered, 1, kLanes);
      const float now = x1 * __shfl_sync(0xffffffffu, filtered, 2, kLanes);
      double sum = advance(x, pole, residue, now);
      leave(x, row);
#pragma unroll
      for (int bit = 1; bit < kLanes; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
      if (live && lane == 0) write(static_cast<T*>(p.y) + row, x2 * static_cast<float>(sum + static_cast<double>(skip) * now));
    }
  }
};

}  // namespace tkpy::hyena_step

#define TKPY_HYENA_STEP(T, MODES)                                                              \
  extern "C" __global__ void __launch_bounds__(tkpy::hyena_step::kThreads, MODES == 8 ? 8 : 3) \
      hyena_step_##T##_##MODES(const __grid_constant__ tkpy::hyena_step::Params p) {           \
    tkpy::hyena_step::Step<tkpy::rows::T, MODES>{p}.run();                                     \
  }
#define TKPY_HYENA_STEPS(T) TKPY_HYENA_STEP(T, 8) TKPY_HYENA_STEP(T, 32)
TKPY_HYENA_STEPS(bf16)
TKPY_HYENA_STEPS(fp16)
TKPY_HYENA_STEPS(f32)
