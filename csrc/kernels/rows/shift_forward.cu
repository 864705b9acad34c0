// token_shift: y[m,b,t] = p + mix[m] (x[b,t] - p),  p = x[b,t-1], before the first token last[b] or 0
// in   x [B,T,C] bf16, fp16 or f32, channels contiguous | last [B,C] | mix [M,C] x's type or f32      out  y [M,B,T,C]
// kernels  rows_shift_forward_<type of x>
// grid  a thread has 16 bytes of channels of a run of tokens (shift.cuh): the token before stays in registers, 4 are
//       worked on while the next 4 are on their way, and each mix is read, out of L1, once for 4 tokens
// precision  fp32; y rounded once      limits  any M <= 16, any C: rows that do not begin at multiples of 16 bytes move
//            in smaller pieces
// cost  bytes x + M y, each once, and a token more a run; 3 M flops an element
#include "shift.cuh"

namespace tkpy::rows {

template <class T>
struct ShiftForward : ShiftRun<T> {
  using ShiftRun<T>::N, ShiftRun<T>::p, ShiftRun<T>::col, ShiftRun<T>::first, ShiftRun<T>::end;

  TK_DEVICE explicit ShiftForward(const ShiftParams& params) : ShiftRun<T>(params) {}

  TK_DEVICE void fetch(raw<T, N> (&x)[kShiftTokens], int token) const {
#pragma unroll
    for (int i = 0; i < kShiftTokens; ++i) this->load(x[i], token + i, 0);
  }
  TK_DEVICE void write(const float (&x)[kShiftTokens + 1][N], int token) const {
    for (int m = 0; m < p.mixes; ++m) {
      float w[N], y[N];
      this->mixes(w, m);
#pragma unroll
      for (int i = 0; i < kShiftTokens; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) y[j] = fmaf(w[j], x[i + 1][j] - x[i][j], x[i][j]);
        raw<T, N> out;
        out.put(y);
        out.store(this->output(m, token + i), col, token + i < end ? p.channels : 0, p.grain);
      }
    }
  }
  TK_DEVICE void run() const {
    if (!this->exists()) return;
    raw<T, N> before, next[kShiftTokens];
    float x[kShiftTokens + 1][N];
    this->load(before, first - 1, first - 1);
    before.get(x[kShiftTokens]);
    fetch(next, first);
    for (int token = first; token < end; token += kShiftTokens) {
#pragma unroll
      for (int j = 0; j < N; ++j) x[0][j] = x[kShiftTokens][j];
#pragma unroll
      for (int i = 0; i < kShiftTokens; ++i) next[i].get(x[i + 1]);
      fetch(next, token + kShiftTokens);  // under way while these are mixed
      write(x, token);
    }
  }
};

}  // namespace tkpy::rows

#define TKPY_SHIFT(T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kShiftThreads)                                    \
      rows_shift_forward_##T(const __grid_constant__ tkpy::rows::ShiftParams p) {                            \
    tkpy::rows::ShiftForward<tkpy::rows::T>(p).run();                                                        \
  }
TKPY_SHIFT(bf16)
TKPY_SHIFT(fp16)
TKPY_SHIFT(f32)
