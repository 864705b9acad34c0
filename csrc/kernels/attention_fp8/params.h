// What the two sides of the fp8 attention forward share: the parameter block and the shapes of its kernels.
#pragma once

#include "kernels/attention_forward/params.h"

namespace tkpy::attention_fp8 {

constexpr int kBlock = 128;  // rows that share a scale: the query rows of a CTA, the keys of a step

// One kernel: the widest q, k and v it takes. Narrower tensors are served too, as in attention_forward.
struct Shape {
  int dim;
  static constexpr int kConsumers = 2, kStages = 2, kThreads = 128 * (1 + kConsumers);
  constexpr int shared_bytes() const {
    const int operands = kBlock * dim * (1 + 3 * kStages), outputs = 2 * kBlock * dim;  // q; k, v and v^T; o
    return operands + outputs + 1024;  // barriers, in the tiles' alignment
  }
};
constexpr Shape kShapes[] = {{64}, {128}};

// Tensor maps as in attention_forward; boxes of q, k and v of `dim` columns of one byte, swizzle `dim`.
struct Params : attention_forward::Params {
  const float *descale_q, *descale_k, *descale_v;  // [B, heads, blocks of q], [B, kv_heads, blocks of keys], > 0
  int kv_heads, q_blocks, k_blocks;
};

}  // namespace tkpy::attention_fp8
