// What the two sides of the attention forward share: the parameter block and the shapes of its kernels.
#pragma once

#include "kernels/block_lists/lists.h"
#include "tk/tensor_map.h"

namespace tkpy::attention_forward {

// One kernel: the widest q, k (`dim`) and v (`dim_v`) it takes, warpgroups of 64 query rows, keys of a block. Narrower
// tensors are served too: TMA fills the missing columns with zeros and does not write them.
struct Shape {
  int dim, dim_v, consumers, keys;
  int ctas = 1;                // that share an SM
  bool always_capped = false;  // there is no plain kernel: few ask for this width
  constexpr int rows() const { return 64 * consumers; }
  constexpr int threads() const { return 128 * (1 + consumers); }
  // The output has shared tiles of its own where there is room; otherwise it goes out through those of q.
  constexpr bool own_out() const { return dim <= 128; }
  constexpr int shared_bytes() const {
    const int tiles = 2 * (rows() * dim + kStages * keys * (dim + dim_v) + (own_out() ? rows() * dim_v : 0));
    return tiles + 1024;  // barriers, in the tiles' alignment
  }
  constexpr int producer_registers() const { return consumers == 3 ? 32 : ctas == 3 ? 24 : 40; }
  constexpr int consumer_registers() const { return consumers == 3 ? 160 : consumers == 2 ? 232 : ctas == 3 ? 136 : 216; }
  static constexpr int kStages = 2;  // of k, and of v
};
constexpr Shape kShapes[] = {{32, 32, 3, 128},
                             {64, 64, 3, 128},
                             {96, 96, 3, 112},
                             {128, 128, 2, 128},
                             {160, 160, 2, 128, 1, true},
                             {192, 128, 2, 128},
                             {192, 192, 2, 112, 1, true},
                             {224, 224, 2, 96, 1, true},
                             {256, 256, 2, 80}};
constexpr int kWidths = sizeof(kShapes) / sizeof(Shape);
// For lists of blocks, in the same order, those of 128 first, then of 64: a tile of queries and one of keys lie within a
// block each. Query blocks of 64 share nothing, so each has a CTA of its own, and CTAs overlap as consumers of one do.
constexpr Shape kBlockShapes[] = {{32, 32, 2, 128},
                                  {64, 64, 2, 128},
                                  {96, 96, 2, 128},
                                  {128, 128, 2, 128},
                                  {160, 160, 2, 128, 1, true},
                                  {192, 128, 2, 128, 1, true},
                                  {192, 192, 2, 64, 1, true},
                                  {224, 224, 2, 64, 1, true},
                                  {256, 256, 2, 64},
                                  {32, 32, 1, 64, 3},
                                  {64, 64, 1, 64, 3},
                                  {96, 96, 1, 64, 3},
                                  {128, 128, 1, 64, 2},
                                  {160, 160, 1, 64, 2, true},
                                  {192, 128, 1, 64, 2, true},
                                  {192, 192, 1, 64, 1, true},
                                  {224, 224, 1, 64, 1, true},
                                  {256, 256, 1, 64}};
static_assert(sizeof(kBlockShapes) == 2 * sizeof(kShapes));

// The tensor maps see [B, heads, rows, columns], packed sequences as one batch entry; boxes of a panel of their tile
// (64 columns; 32 where 64 do not divide the width) and 64 query rows or `keys` keys; the swizzle is the panel's width.
struct Params {
  tk::tensor_map q, k, v, out, plain;
  void* out_data;    // contiguous [B, seq_q, heads, dim_v]
  void* plain_data;  // the output before out_scale and out_bias, or null
  float* lse;        // [B, heads, seq_q], packed [heads, seq_q]
  const float* sinks;                // [heads] or null
  const float* out_scale;            // [heads, dim_v] or null
  const float* out_bias;             // [heads, dim_v] or null
  const int* kv_head_map;            // [heads] or null
  const int *cu_seqlens_q, *cu_seqlens_k;  // [sequences + 1] or null: packed
  int sequences;      // batch entries, or packed sequences
  int heads, group;   // query heads; how many of them share a key head, without a map
  int seq_q, seq_k;   // rows of each batch entry, or of all packed sequences together
  int dim_v;
  int tiles;          // query tiles of a batch entry; packed: a bound on those of all sequences together
  int heads_at_once;  // (batch entry, head) pairs whose keys and values should be in L2 at a time
  int left, right;    // the band around the diagonal, -1: open
  float scale_log2;           // plain kernels: scale * log2 e, positive
  float cap_outer, cap_inner;  // capped kernels: scores in units of log2 are outer tanh(inner s), or inner s: outer is 0
};
struct BlockParams : Params {
  block_lists::Lists lists;
};

}  // namespace tkpy::attention_forward
