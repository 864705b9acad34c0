// wkv5_step: one token of RWKV-5's time mix after its projections, per row and head, with d = exp(-exp(w))
//   y = r (S + diag(u) k v^T),  S' = diag(d) S + k v^T,  z = (weight (y - mean(y)) / sqrt(var(y) + eps) + bias) silu(gate)
// in   r k v gate [B,H,N] bf16, fp16 or f32 | w u [H,N] f32 | weight bias [H,N] f32 or r's type | S [B,H,N,N] f32
// out  z [B,H,N] r's type, S' [B,H,N,N] f32
// data  S: global -> registers, 4 or 8 times 16 bytes a thread, all asked for before anything is waited for -> S' global;
//       r k v d and the bonus r u k: shared memory, as float; y: sums over a thread's rows, then over the threads of a
//       warp that have its columns (shuffles), then over warps (shared memory), by the first warp, which norms and gates
// grid  a CTA a row and head, so that the norm needs no other: N^2 / 16 threads, at N = 128 half as many
// barriers  __syncthreads twice: r k v d are there; the warps' sums are there
// precision  fp32, the variance about the mean; z rounded once. Sums in an order that does not vary
// limits  N <= 128; B H < 2^31; rows of N % 4 != 0 or at odd addresses move in pieces of 4 bytes
// cost  bytes 8 N^2 a head for the states, 5 N elements beside them: bound by memory; flops 6 N^2
#include "kernels/rows/rows.cuh"
#include "params.h"

namespace tkpy::wkv5_step {

using namespace tk;

template <class T, int W>
struct Step {
  static constexpr int kAcross = W / kColumns, kRows = rows_of(W), kThreads = threads_of(W);
  static constexpr int kWarps = kThreads / 32, kStride = kThreads / kAcross;  // rows that the CTA has at once
  static constexpr int kEach = W / 32;                                        // channels of y in a lane of the first warp

  struct Shared {
    alignas(16) float r[W], k[W], v[W], decay[W], bonus[W];
    alignas(16) float part[kWarps][W];
  };

  const Params& p;
  Shared& s;
  const int thread = static_cast<int>(threadIdx.x);
  const int col = thread % kAcross * kColumns, first = thread / kAcross;
  const long long unit = blockIdx.x;  // row and head
  const int head = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.heads));

  TK_DEVICE float value(const void* of, int i) const {
    return i < p.size ? read(static_cast<const T*>(of) + unit * p.size + i) : 0.0f;
  }

  // Four neighbours of a row of a state; 0 outside.
  TK_DEVICE void fetch(float (&x)[kColumns], int row) const {
#pragma unroll
    for (float& each : x) each = 0.0f;
    if (!p.initial || row >= p.size || col >= p.size) return;
    const float* from = p.initial + (unit * p.size + row) * p.size + col;
    if (p.whole) {
      const uint4 four = ptx::ld_global_v4(from);
      const u32 word[] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < kColumns; ++j) x[j] = __uint_as_float(word[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        if (col + j < p.size) x[j] = from[j];
    }
  }
  TK_DEVICE void leave(const float (&x)[kColumns], int row) const {
    if (row >= p.size || col >= p.size) return;
    float* to = p.final + (unit * p.size + row) * p.size + col;
    if (p.whole) {
      ptx::st_global_v4(to, make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])));
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        if (col + j < p.size) to[j] = x[j];
    }
  }

  // r, k, v, d and r u k of a channel. Padding has y = 0 and changes no state that is kept.
  TK_DEVICE void prepare() const {
    if (thread >= W) return;
    const bool some = thread < p.size;
    const long long at = static_cast<long long>(head) * p.size + thread;
    const float r = value(p.r, thread), k = value(p.k, thread);
    s.r[thread] = r;
    s.k[thread] = k;
    s.v[thread] = value(p.v, thread);
    s.decay[thread] = some ? expf(-expf(p.w[at])) : 0.0f;
    s.bonus[thread] = some ? r * p.u[at] * k : 0.0f;
  }

  // This thread's share of y, and its part of S'.
  TK_DEVICE void recur(float (&y)[kColumns], float (&state)[kRows][kColumns]) const {
    float v[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] = s.v[col + j], y[j] = 0.0f;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = first + i * kStride;
      const float r = s.r[row], k = s.k[row], decay = s.decay[row], bonus = s.bonus[row];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        y[j] = fmaf(r, state[i][j], fmaf(bonus, v[j], y[j]));
        state[i][j] = fmaf(decay, state[i][j], k * v[j]);
      }
      leave(state[i], row);
    }
  }
  // Shares of y: over the lanes that have the same columns, one of which leaves the sum.
  TK_DEVICE void share(float (&y)[kColumns]) const {
#pragma unroll
    for (int step = kAcross; step < 32; step *= 2)
#pragma unroll
      for (float& each : y) each += __shfl_xor_sync(0xffffffffu, each, step);
    if (lane_index() >= kAcross) return;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) s.part[thread / 32][col + j] = y[j];
  }

  TK_DEVICE static float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
  }

  // The first warp: y, its norm, the gate.
  struct Affine {
    float weight[kEach], bias[kEach], gate[kEach];
  };
  TK_DEVICE void fetch(Affine& a) const {
    const int at = lane_index() * kEach;
    const auto of_head = [&](const rows::Vector& x) {
      const long long bytes = static_cast<long long>(head) * p.size * (x.kind == rows::kF32 ? 4 : sizeof(T));
      return rows::Vector{x.data ? static_cast<const char*>(x.data) + bytes : nullptr, x.kind};
    };
    rows::parameters<T>(a.weight, of_head(p.weight), at, p.size, 1.0f);
    rows::parameters<T>(a.bias, of_head(p.bias), at, p.size, 0.0f);
#pragma unroll
    for (int e = 0; e < kEach; ++e) a.gate[e] = p.gate ? value(p.gate, at + e) : 0.0f;
  }
  TK_DEVICE void finish(const Affine& a) const {
    const int at = lane_index() * kEach;
    float y[kEach], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      y[e] = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) y[e] += s.part[warp][at + e];
      sum += y[e];
    }
    const float mean = warp_sum(sum) / static_cast<float>(p.size);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      y[e] = at + e < p.size ? y[e] - mean : 0.0f;
      squares = fmaf(y[e], y[e], squares);
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(p.size) + p.eps);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (at + e >= p.size) continue;
      float z = fmaf(y[e] * inverse, a.weight[e], a.bias[e]);
      if (p.gate) z *= fn::silu(a.gate[e]);
      write(static_cast<T*>(p.y) + unit * p.size + at + e, z);
    }
  }

  TK_DEVICE void run() const {
    float state[kRows][kColumns], y[kColumns];
#pragma unroll
    for (int i = 0; i < kRows; ++i) fetch(state[i], first + i * kStride);
    Affine affine;
    if (warp_index() == 0) fetch(affine);
    prepare();
    __syncthreads();
    recur(y, state);
    share(y);
    __syncthreads();
    if (warp_index() == 0) finish(affine);
  }
};

}  // namespace tkpy::wkv5_step

#define TKPY_WKV5_STEP(T, W)                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::wkv5_step::threads_of(W))                      \
      wkv5_step_##T##_##W(const __grid_constant__ tkpy::wkv5_step::Params p) {                      \
    using Step = tkpy::wkv5_step::Step<tkpy::rows::T, W>;                                           \
    __shared__ Step::Shared shared;                                                                 \
    Step{p, shared}.run();                                                                          \
  }
#define TKPY_WKV5_STEPS(T) TKPY_WKV5_STEP(T, 32) TKPY_WKV5_STEP(T, 64) TKPY_WKV5_STEP(T, 128)
TKPY_WKV5_STEPS(bf16)
TKPY_WKV5_STEPS(fp16)
TKPY_WKV5_STEPS(f32)
