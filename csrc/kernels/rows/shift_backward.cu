// Gradients of token_shift: y[m,t] = p + mix[m] (x[t] - p),  p = x[t-1], or last
//   dx[t] = sum over m of mix[m] dy[m,t] + (1 - mix[m]) dy[m,t+1],  dlast that of t = -1,  dmix[m] = sum of dy[m,t] (x[t] - p)
// in   x, last, mix as forward | dy [M,B,T,C]      out  dx [B,T,C] | dlast [B,C] | partial [shares][M][C] f32
// kernels  rows_shift_backward_<type of x>; rows_norm_sum adds the CTAs' shares of dmix, in order: the same call gives
//          the same bits
// grid  as forward, but a thread goes through its run from the end: what a token leaves to the one before it, summed
//       over the mixes, stays in registers. 4 tokens at a time, mix by mix; the run's share of dmix is each thread's own
//       in shared memory, [M][chunk][threads]: no bank conflicts. Last the CTA's runs are added: one share of a CTA
// precision  fp32; dx, dlast rounded once      limits  as forward
// cost  bytes x + M dy + dx, each once, a token more a run, and 8 M bytes a channel and CTA; 6 M flops an element
#include "shift.cuh"

namespace tkpy::rows {

template <class T>
struct ShiftBackward : ShiftRun<T> {
  using ShiftRun<T>::N, ShiftRun<T>::p, ShiftRun<T>::col, ShiftRun<T>::first, ShiftRun<T>::end, ShiftRun<T>::batch;
  float *all, *own;  // element i of mix m at (m N + i) kShiftThreads, of all threads and of this one

  TK_DEVICE ShiftBackward(const ShiftParams& params, float* shared) 
      : ShiftRun<T>(params), all(shared), own(shared + threadIdx.x) {}

  // What the token after the run leaves to its last one.
  TK_DEVICE void enter(float (&carry)[N]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) carry[j] = 0.0f;
    if (end >= p.length) return;
    for (int m = 0; m < p.mixes; ++m) {
      float w[N], dy[N];
      raw<T, N> bits;
      bits.load(this->output(m, end), col, p.channels, p.grain);
      this->mixes(w, m);
      bits.get(dy);
#pragma unroll
      for (int j = 0; j < N; ++j) carry[j] = fmaf(1.0f - w[j], dy[j], carry[j]);
    }
  }
  // Mix m of tokens after - 1, after - 2 ..: d[i] is the gradient of token after - 1 - i.
  TK_DEVICE void mix(float (&d)[kShiftTokens + 1][N], const raw<T, N> (&x)[kShiftTokens + 1], int m, int after) const {
    raw<T, N> dy[kShiftTokens];
#pragma unroll
    for (int i = 0; i < kShiftTokens; ++i) {
      const int token = after - 1 - i;
      dy[i].load(this->output(m, token), col, token >= first ? p.channels : 0, p.grain);
    }
    float w[N], share[N];
    this->mixes(w, m);
#pragma unroll
    for (int j = 0; j < N; ++j) share[j] = own[(m * N + j) * kShiftThreads];
#pragma unroll
    for (int i = 0; i < kShiftTokens; ++i) {
      float g[N], here[N], before[N];
      dy[i].get(g);
      x[i].get(here);
      x[i + 1].get(before);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        share[j] = fmaf(g[j], here[j] - before[j], share[j]);
        d[i][j] = fmaf(w[j], g[j], d[i][j]);
        d[i + 1][j] = fmaf(1.0f - w[j], g[j], d[i + 1][j]);
      }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) own[(m * N + j) * kShiftThreads] = share[j];
  }
  TK_DEVICE void write(const float (&d)[kShiftTokens + 1][N], int after) const {
#pragma unroll
    for (int i = 0; i < kShiftTokens; ++i) {
      const int token = after - 1 - i;
      raw<T, N> out;
      out.put(d[i]);
      T* row = static_cast<T*>(p.dx) + (batch * p.length + token) * p.channels;
      out.store(row, col, token >= first ? p.channels : 0, p.grain);
      if (token != 0 || p.dlast == nullptr) continue;
      out.put(d[i + 1]);
      out.store(static_cast<T*>(p.dlast) + batch * p.channels, col, p.channels, p.grain);
    }
  }
  // The CTA's share of dmix: the first run of it adds up mix 0, the second mix 1 .., each from its own place on, so that
  // a warp of several runs reads every bank once.
  TK_DEVICE void leave() const {
    const unsigned teams = this->teams();
    float* share = p.partial + static_cast<long long>(blockIdx.x / p.across) * p.mixes * p.channels;
    for (int m = static_cast<int>(this->team); m < p.mixes; m += static_cast<int>(teams)) {
      float v[N] = {};
      for (unsigned k = 0; k < teams; ++k) {
        const unsigned from = (((k + this->team) & (teams - 1)) << p.lane_bits) + this->lane;
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] += all[(m * N + j) * kShiftThreads + from];
      }
      raw<float, N> out;
      out.put(v);
      out.store(share + static_cast<long long>(m) * p.channels, col, p.channels, p.partial_grain);
    }
  }

  TK_DEVICE void run() const {
    for (int i = 0; i < p.mixes * N; ++i) own[i * kShiftThreads] = 0.0f;
    if (this->exists()) gradients();
    __syncthreads();
    leave();
  }
  TK_DEVICE void gradients() const {
    float d[kShiftTokens + 1][N];
    enter(d[kShiftTokens]);
    for (int after = end; after > first; after -= kShiftTokens) {
      raw<T, N> x[kShiftTokens + 1];
#pragma unroll
      for (int i = 0; i <= kShiftTokens; ++i) this->load(x[i], after - 1 - i, first - 1);
#pragma unroll
      for (int j = 0; j < N; ++j) d[0][j] = d[kShiftTokens][j];
#pragma unroll
      for (int i = 1; i <= kShiftTokens; ++i)
#pragma unroll
        for (int j = 0; j < N; ++j) d[i][j] = 0.0f;
      for (int m = 0; m < p.mixes; ++m) mix(d, x, m, after);
      write(d, after);
    }
  }
};

}  // namespace tkpy::rows

#define TKPY_SHIFT(T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kShiftThreads, 3)                                 \
      rows_shift_backward_##T(const __grid_constant__ tkpy::rows::ShiftParams p) {                           \
    extern __shared__ float shared[];                                                                        \
    tkpy::rows::ShiftBackward<tkpy::rows::T>(p, shared).run();                                               \
  }
TKPY_SHIFT(bf16)
TKPY_SHIFT(fp16)
TKPY_SHIFT(f32)
