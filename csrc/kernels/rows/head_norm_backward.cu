// Gradients of group_norm: y = (weight n + bias) silu(gate),  h = dy silu(gate),  g = weight h
//   dx = r (g - mean(g) - n mean(g n)),  dgate = dy (weight n + bias) silu'(gate),  dweight = sum of h n,  dbias = sum of h
// in   x, gate, weight, bias, mean, r as forward has them | dy [M,H,N]
// out  dx, dgate [M,H,N] | partial [2][splits][H,N] f32
// kernels  rows_head_norm_backward_<type of x>; rows_norm_sum adds the teams' shares, in order: the same call gives the
//          same bits
// grid  as forward; the gradients of weight and bias stay in registers, and each team leaves its share at the end
// precision  fp32; dx and dgate rounded once      limits  as forward
// cost  bytes x + gate + dy + dx + dgate, each once, 8 bytes of statistics a head, 16 bytes a channel and split
#include "head_norm.cuh"

namespace tkpy::rows {

template <class T>
struct HeadNormBackward : HeadNorm<T> {
  using HeadNorm<T>::N, HeadNorm<T>::V, HeadNorm<T>::p, HeadNorm<T>::team;
  using typename HeadNorm<T>::Values, typename HeadNorm<T>::Bits;
  struct Fetched {
    Bits x, gate, dy;
    float mean, r;
  };

  TK_DEVICE explicit HeadNormBackward(const HeadNormParams& params) : HeadNorm<T>(params) {}

  TK_DEVICE void fetch_all(Fetched& f, long long step) const {
    this->fetch(f.x, p.x, step);
    this->fetch(f.dy, p.dy, step);
    this->fetch(f.gate, p.gate, step);
    f.mean = f.r = 0.0f;
    if (!this->exists(step)) return;
    f.mean = p.mean[this->index(step)];
    f.r = p.rstd[this->index(step)];
  }
  // n, and in place of dy h; dgate is written.
  TK_DEVICE void take(Values& n, Values& h, const Fetched& f, const Values& w, const Values& b, long long step) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float gate[N], dgate[N] = {};
      f.x[k].get(n[k]);
      f.dy[k].get(h[k]);
      f.gate[k].get(gate);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        n[k][i] = (n[k][i] - f.mean) * f.r;
        if (!p.gate) continue;
        const float s = fn::sigmoid(gate[i]);
        dgate[i] = h[k][i] * fmaf(w[k][i], n[k][i], b[k][i]) * s * fmaf(gate[i], 1.0f - s, 1.0f);
        h[k][i] *= gate[i] * s;
      }
      if (p.dgate) this->store(p.dgate, dgate, k, step);
    }
  }
  TK_DEVICE void leave(const Values& sum, int which) const {
    if (this->split >= p.splits) return;
    float* share = p.partial + ((which * p.splits + this->split) * p.heads + this->head) * p.size;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      raw<float, N> out;
      out.put(sum[k]);
      out.store(share, this->column(k), p.size, p.partial_grain);
    }
  }

  TK_DEVICE void run() {
    Values w, b, dweight = {}, dbias = {};
    Fetched now, next;
    this->load_parameters(w, p.weight, 1.0f);
    this->load_parameters(b, p.bias, 0.0f);
    fetch_all(next, 0);
    for (long long step = 0; step < this->steps; ++step) {
      now = next;
      fetch_all(next, step + 1);  // under way while this one is summed
      Values n, h;
      take(n, h, now, w, b, step);
      float total[2] = {0.0f, 0.0f};
#pragma unroll
      for (int k = 0; k < V; ++k)
#pragma unroll
        for (int i = 0; i < N; ++i) {
          dweight[k][i] = fmaf(h[k][i], n[k][i], dweight[k][i]);
          dbias[k][i] += h[k][i];
          const float g = w[k][i] * h[k][i];
          total[0] += g;
          total[1] = fmaf(g, n[k][i], total[1]);
        }
      team.sum(total);
      const float shift = total[0] / static_cast<float>(p.size), slope = total[1] / static_cast<float>(p.size);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        float dx[N];
#pragma unroll
        for (int i = 0; i < N; ++i) dx[i] = now.r * (fmaf(w[k][i], h[k][i], -shift) - n[k][i] * slope);
        this->store(p.dx, dx, k, step);
      }
    }
    leave(dweight, 0);
    leave(dbias, 1);
  }
};

}  // namespace tkpy::rows

#define TKPY_HEADS(T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kMostHeadThreads)                                 \
      rows_head_norm_backward_##T(const __grid_constant__ tkpy::rows::HeadNormParams p) {                    \
    tkpy::rows::HeadNormBackward<tkpy::rows::T>(p).run();                                                    \
  }
TKPY_HEADS(bf16)
TKPY_HEADS(fp16)
TKPY_HEADS(f32)
