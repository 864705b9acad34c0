// merge_state: lse = log(e^lse1 + e^lse2),  out = e^(lse1 - lse) out1 + e^(lse2 - lse) out2;  an infinite lse_i: no part
// in   out1, out2 [B,S,H,D] bf16, fp16 or f32, elements of a row contiguous | lse1, lse2 [B,H,S] f32, any strides
// out  out [B,S,H,D] | lse [B,H,S] f32
// kernels  rows_merge_forward_<type of out>
// grid  a CTA has a run of tokens of one head, a team (rows.cuh) each, so that their log-sum-exps, neighbours in memory,
//       come as whole sectors; both rows are under way while the weights are formed
// precision  fp32; weights of the difference of the log-sum-exps; out rounded once
// limits  D <= 4096; rows that do not begin at multiples of 16 bytes move in smaller pieces
// cost  bytes out1 + out2 + out, each once, and 12 a row; 3 flops an element
#include "merge.cuh"

namespace tkpy::rows {

template <class T>
struct MergeForward : Merge<T> {
  using Merge<T>::N, Merge<T>::V, Merge<T>::p;
  TK_DEVICE explicit MergeForward(const MergeParams& params) : Merge<T>(params) {}

  TK_DEVICE void run() const {
    typename Merge<T>::Bits first, second;
    this->fetch(first, p.out[0]);
    this->fetch(second, p.out[1]);
    float w[2];
    this->leave(p.merged_lse, this->weigh(w));
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float a[N], b[N];
      this->part(a, first[k], w[0]);
      this->part(b, second[k], w[1]);
#pragma unroll
      for (int i = 0; i < N; ++i) a[i] = fmaf(w[0], a[i], w[1] * b[i]);
      this->store(p.merged, a, k);
    }
  }
};

}  // namespace tkpy::rows

#define TKPY_MERGE(T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kMostMergeThreads)                                \
      rows_merge_forward_##T(const __grid_constant__ tkpy::rows::MergeParams p) {                            \
    tkpy::rows::MergeForward<tkpy::rows::T>(p).run();                                                        \
  }
TKPY_MERGE(bf16)
TKPY_MERGE(fp16)
TKPY_MERGE(f32)
