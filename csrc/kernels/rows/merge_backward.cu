// Gradients of merge_state: w_i = e^(lse_i - lse),  s = dout . (out1 - out2)
//   dout_i = w_i dout,   dlse1 = w_1 (dlse + w_2 s),   dlse2 = w_2 (dlse - w_1 s)
// in   out1, out2, lse1, lse2 as forward has them | dout [B,S,H,D] and dlse [B,H,S], each or none
// out  dout1, dout2 [B,S,H,D] | dlse1, dlse2 [B,H,S] f32, those that are wanted
// kernels  rows_merge_backward_<type of out>
// grid  as forward; s is the team's sum
// precision  fp32; dout_i rounded once      limits  as forward
// cost  bytes out1 + out2 + dout + dout1 + dout2, each once, and 20 a row; 5 flops an element
#include "merge.cuh"

namespace tkpy::rows {

template <class T>
struct MergeBackward : Merge<T> {
  using Merge<T>::N, Merge<T>::V, Merge<T>::p;
  TK_DEVICE explicit MergeBackward(const MergeParams& params) : Merge<T>(params) {}

  TK_DEVICE void run() {
    typename Merge<T>::Bits first, second, gradient;
    this->fetch(first, p.out[0]);
    this->fetch(second, p.out[1]);
    this->fetch(gradient, p.dy);
    float w[2], slope[1] = {0.0f};
    this->weigh(w);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float a[N], b[N], d[N];
      this->part(a, first[k], w[0]);
      this->part(b, second[k], w[1]);
      gradient[k].get(d);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        slope[0] = fmaf(d[i], a[i] - b[i], slope[0]);
        a[i] = w[0] * d[i];
        b[i] = w[1] * d[i];
      }
      this->store(p.dout[0], a, k);
      this->store(p.dout[1], b, k);
    }
    this->team.sum(slope);
    const float dlse = this->number(p.dlse, 0.0f);
    this->leave(p.dpart_lse[0], w[0] * fmaf(w[1], slope[0], dlse));
    this->leave(p.dpart_lse[1], w[1] * fmaf(-w[0], slope[0], dlse));
  }
};

}  // namespace tkpy::rows

#define TKPY_MERGE(T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kMostMergeThreads)                                \
      rows_merge_backward_##T(const __grid_constant__ tkpy::rows::MergeParams p) {                           \
    tkpy::rows::MergeBackward<tkpy::rows::T>(p).run();                                                       \
  }
TKPY_MERGE(bf16)
TKPY_MERGE(fp16)
TKPY_MERGE(f32)
