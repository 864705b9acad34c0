// group_norm: y = (weight n + bias) silu(gate),  n = (x - mean) r,  r = 1 / sqrt(var + eps)            per row and head
// in   x, gate [M,H,N] bf16, fp16 or f32 | weight, bias [H,N] x's type or f32, each of gate, weight, bias or none
// out  y [M,H,N] | mean, r [M,H] f32
// kernels  rows_head_norm_forward_<type of x>
// grid  as many CTAs as stay on the GPU; a team of threads (rows.cuh) stays with one head, whose weight and bias it keeps
//       in registers, and takes every n-th row; teams beside each other have heads beside each other. The next row's
//       elements are on their way while this one's are summed
// precision  fp32, the variance about the mean (no cancellation); y rounded once
// limits  N <= 4096; rows that do not begin at multiples of 16 bytes move in smaller pieces
// cost  bytes x + gate + y, each once, and 8 bytes of statistics a head; 13 flops an element
#include "head_norm.cuh"

namespace tkpy::rows {

template <class T>
struct HeadNormForward : HeadNorm<T> {
  using HeadNorm<T>::N, HeadNorm<T>::V, HeadNorm<T>::p, HeadNorm<T>::team;
  using typename HeadNorm<T>::Values, typename HeadNorm<T>::Bits;

  TK_DEVICE explicit HeadNormForward(const HeadNormParams& params) : HeadNorm<T>(params) {}

  // Mean and 1 / sqrt(var + eps).
  TK_DEVICE void moments(float& mean, float& r, const Values& v) {
    float sum[1] = {0.0f}, squares[1] = {0.0f};
#pragma unroll
    for (int k = 0; k < V; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) sum[0] += v[k][i];
    team.sum(sum);
    mean = sum[0] / static_cast<float>(p.size);
#pragma unroll
    for (int k = 0; k < V; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float centred = this->column(k) + i < p.size ? v[k][i] - mean : 0.0f;
        squares[0] = fmaf(centred, centred, squares[0]);
      }
    team.sum(squares);
    r = 1.0f / sqrtf(squares[0] / static_cast<float>(p.size) + p.eps);
  }

  TK_DEVICE void run() {
    Values v, w, b;
    Bits next, gate, next_gate;
    this->load_parameters(w, p.weight, 1.0f);
    this->load_parameters(b, p.bias, 0.0f);
    this->fetch(next, p.x, 0);
    this->fetch(next_gate, p.gate, 0);
    for (long long step = 0; step < this->steps; ++step) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        next[k].get(v[k]);
        gate[k] = next_gate[k];
      }
      this->fetch(next, p.x, step + 1);
      this->fetch(next_gate, p.gate, step + 1);
      float mean, r;
      moments(mean, r, v);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        float y[N], g[N];
        gate[k].get(g);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          y[i] = fmaf((v[k][i] - mean) * r, w[k][i], b[k][i]);
          if (p.gate) y[i] *= fn::silu(g[i]);
        }
        this->store(p.y, y, k, step);
      }
      if (team.lane > 0 || !this->exists(step)) continue;
      p.mean[this->index(step)] = mean;
      p.rstd[this->index(step)] = r;
    }
  }
};

}  // namespace tkpy::rows

#define TKPY_HEADS(T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kMostHeadThreads)                                 \
      rows_head_norm_forward_##T(const __grid_constant__ tkpy::rows::HeadNormParams p) {                     \
    tkpy::rows::HeadNormForward<tkpy::rows::T>(p).run();                                                     \
  }
TKPY_HEADS(bf16)
TKPY_HEADS(fp16)
TKPY_HEADS(f32)
