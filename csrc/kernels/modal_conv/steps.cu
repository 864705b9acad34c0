// modal_conv sample by sample: x = p x + pre u, y = post (Re sum_s R x + skip pre u); decoding, and what is left after the
// last whole chunk of 64 samples.
//
// in   u, pre, post [B,H,L] bf16, fp16 or f32; the state [B,H,S] complex64, or complex128 as the chunks left it
// out  y in their type, the state complex64
// work eight lanes a channel, each with modes s, s + 8, ..: eight samples are loaded at once, one a lane, taken one by
//      one by all, and summed over the lanes by shuffles in an order that does not vary
// precision  states and sums in double: of a step's cost, the bytes of the state are most
// limits  S <= 32
// cost  bytes 16 S a channel for the state and its poles and residues each, 4 elements a sample
#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::modal_conv {

using namespace tk;

constexpr int kLanes = 8, kEach = kMostModes / kLanes;

template <class T>
TK_DEVICE double sample(const Signal& x, long long b, long long h, int t) {
  return read(static_cast<const T*>(x.data) + b * x.batch + h * x.channel + t);
}

template <class T>
TK_DEVICE void steps(const StepParams& p) {
  const long long unit = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  const bool live = unit < static_cast<long long>(p.batch) * p.channels;
  const long long b = live ? unit / p.channels : 0, h = live ? unit % p.channels : 0;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  double pr[kEach], pi[kEach], rr[kEach], ri[kEach], xr[kEach], xi[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int s = lane + kLanes * i;
    const bool exists = live && s < p.modes;
    const long long at = h * p.modes + s, state = unit * p.modes + s;
    pr[i] = exists ? p.poles[at].re : 0.0f, pi[i] = exists ? p.poles[at].im : 0.0f;
    rr[i] = exists ? p.residues[at].re : 0.0f, ri[i] = exists ? p.residues[at].im : 0.0f;
    xr[i] = xi[i] = 0.0;
    if (exists && p.start) xr[i] = p.start[state].re, xi[i] = p.start[state].im;
    if (exists && p.wide_start) xr[i] = p.wide_start[state].re, xi[i] = p.wide_start[state].im;
  }
  const double skip = live && p.skip ? p.skip[h] : 0.0f;
#pragma unroll 1
  for (int first = 0; first < p.steps; first += kLanes) {
    const int t = first + lane;
    const bool mine = live && t < p.steps;
    double v = mine ? sample<T>(p.u, b, h, t) : 0.0, y = 0.0;
    if (mine && p.pre.data) v *= sample<T>(p.pre, b, h, t);
#pragma unroll 1
    for (int k = 0; k < kLanes && first + k < p.steps; ++k) {
      const double now = __shfl_sync(0xffffffffu, v, k, kLanes);
      double sum = 0.0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (kLanes * i >= p.modes) break;
        const double re = pr[i] * xr[i] - pi[i] * xi[i] + now;
        xi[i] = pr[i] * xi[i] + pi[i] * xr[i];
        xr[i] = re;
        sum += rr[i] * xr[i] - ri[i] * xi[i];
      }
#pragma unroll
      for (int bit = 1; bit < kLanes; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
      if (k == lane) y = sum + skip * now;
    }
    if (!mine) continue;
    if (p.post.data) y *= sample<T>(p.post, b, h, t);
    write(static_cast<T*>(p.out.data) + b * p.out.batch + h * p.out.channel + t, static_cast<float>(y));
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int s = lane + kLanes * i;
    if (live && p.end && s < p.modes)
      p.end[unit * p.modes + s] = {static_cast<float>(xr[i]), static_cast<float>(xi[i])};
  }
}

}  // namespace tkpy::modal_conv

#define TKPY_MODAL_STEPS(T, NAME)                                                                                       \
  extern "C" __global__ void __launch_bounds__(128)                                                                     \
      modal_steps_##NAME(const __grid_constant__ tkpy::modal_conv::StepParams p) {                                      \
    tkpy::modal_conv::steps<T>(p);                                                                                      \
  }
TKPY_MODAL_STEPS(tk::bf16, bf16)
TKPY_MODAL_STEPS(tk::fp16, fp16)
TKPY_MODAL_STEPS(float, f32)
