// What the two sides of the fp8 attention forward share: the parameter block and the shapes of its kernels.
#pragma once

#include "kernels/attention_forward/params.h"

namespace tkpy::attention_fp8 {

constexpr int kBlock = 128;  // rows that share a scale: the query rows of a CTA, the keys of a step

// One kernel: the widest q, k (`dim`) and v (`dim_v`) it takes. Narrower tensors are served too, as in attention_forward.
struct Shape {
  int dim, dim_v;
  static constexpr int kConsumers = 2, kStages = 2, kThreads = 128 * (1 + kConsumers);  // stages of k, and of v^T
  constexpr int v_stages() const { return dim_v <= 192 ? 2 : 1; }
  // Columns of P v that are summed at a time, beside all of O, S and P in registers; apart: S and P have been used by then.
  constexpr bool apart() const { return dim_v > 192; }
  constexpr int part_columns() const { return dim_v <= 128 ? dim_v : dim_v == 192 ? 64 : dim_v / 2; }
  constexpr int out_columns() const { return dim_v <= 224 ? dim_v : dim_v / 2; }  // that leave at a time
  constexpr int shared_bytes() const {
    const int operands = kBlock * (dim * (1 + kStages) + dim_v * (v_stages() + kStages));  // q, k; v, v^T
    return operands + 2 * kBlock * out_columns() + 1024;  // barriers, in the tiles' alignment
  }
};
constexpr Shape kShapes[] = {{32, 32},   {64, 64},   {96, 96},   {128, 128}, {160, 160},
                             {192, 128}, {192, 192}, {224, 224}, {256, 256}};
constexpr int kWidest = 256;

// Packed, blocks are counted from each sequence's start, so that none spans two. Those of sequence n, whose first row is
// `begin`, have the scales from begin / kBlock + n on: the place takes no sum over sequences, no two meet, and
// total / kBlock + sequences scales are enough for a head.
// Tensor maps as in attention_forward; boxes of a panel of their tile, as wide as its swizzle.
struct Params : attention_forward::Params {
  const float *descale_q, *descale_k, *descale_v;  // [B, heads, q_blocks], [B, kv_heads, k_blocks], > 0; packed: B is 1
  int kv_heads, q_blocks, k_blocks;
};

}  // namespace tkpy::attention_fp8
