// What the two sides of the attention backward share: the parameter block and the shapes of its kernels.
#pragma once

#include "kernels/block_lists/lists.h"
#include "tk/tensor_map.h"

namespace tkpy::attention_backward {

// One set of kernels: the widest q, k and v it takes, the query rows of a step, the keys of a tile. Narrower tensors are
// served too: TMA fills the missing columns with zeros and does not write them.
struct Shape {
  int dim, rows, keys;
  int mask = 0;  // bytes of a row of an element mask in shared memory; 0: there is none, or it is read where it lies
  bool always_capped = false;  // there is no plain kernel: few ask for this width
  int narrow_v = 0;            // the widest v; 0: as k
  static constexpr int kThreads = 384;
  // Two consumers share the keys; wide tiles' sums do not fit, and they share the columns; few keys, and they take steps in
  // turn.
  constexpr bool wide() const { return dim > 128; }
  constexpr int dim_v() const { return narrow_v ? narrow_v : dim; }
  constexpr bool in_turn() const { return !wide() && keys == 64; }
  // Of so many columns, dk's or dv's, those that a consumer sums. Of an odd number of panels the first one has one more than
  // the other.
  constexpr int columns(int consumer, int of) const {
    const int first = (of / 2 + 31) / 32 * 32;
    return !wide() ? of : consumer == 0 ? first : of - first;
  }
  // Columns of a panel of q and dz, and of k, v, dk and dv: what a consumer takes of a tile's columns is whole panels.
  static constexpr int widest(int columns) { return columns % 64 == 0 ? 64 : columns % 32 == 0 ? 32 : 16; }
  constexpr int panel() const { return wide() && dim % 128 != 0 ? 32 : widest(dim); }
  constexpr int key_panel() const { return wide() || in_turn() || rows == 128 ? panel() : widest(dim / 2); }
  constexpr int stages() const { return in_turn() ? 3 : 2; }  // of q and dz, with what is known of their rows
  constexpr int part() const { return rows * dim / 2; }  // half of a step's dq (dq.cuh)
  constexpr int shared_bytes() const {
    const int exchange = 2 * 2 * keys * rows * (wide() ? 2 : 1) + (wide() ? 0 : 2 * 4 * part() * (in_turn() ? 2 : 1));
    const int tiles = 2 * (keys + stages() * rows) * (dim + dim_v());
    return tiles + exchange + stages() * rows * (8 + mask) + 1024;  // what is known of rows; barriers, in the tiles' alignment
  }
};
constexpr Shape kShapes[] = {{32, 128, 128},
                             {64, 128, 128},
                             {96, 64, 128},
                             {128, 64, 128},
                             {160, 64, 64, 0, true},
                             {192, 64, 64, 0, true, 128},
                             {192, 64, 64},
                             {224, 64, 64, 0, true},
                             {256, 64, 64}};
// For lists of blocks, of 8 * mask, or of either size: a tile of keys and one of queries lie within a block each.
constexpr Shape kBlockShapes[] = {{32, 128, 128, 16, true},
                                  {32, 64, 64, 8, true},
                                  {64, 128, 128, 16},
                                  {64, 64, 64, 8},
                                  {96, 64, 128, 16, true},
                                  {96, 64, 64, 8, true},
                                  {128, 64, 128, 16},
                                  {128, 64, 64, 8},
                                  {160, 64, 64, 0, true},
                                  {192, 64, 64, 0, true, 128},
                                  {192, 64, 64, 0, true},
                                  {224, 64, 64, 0, true},
                                  {256, 64, 64}};

// The tensor maps see [B, heads, rows, columns], packed sequences as one batch entry; boxes of `rows` and
// `panel()` columns of q and dz, of `keys` and `key_panel()` columns of k, v, dk and dv; the swizzle is the panel's width.
// A query tile is `rows` rows of one sequence. Of packed sequences the tiles of number n begin at tile
// cu_seqlens_q[n] / rows + n, which leaves room for every sequence's last one; so do those of keys.
struct Params {
  tk::tensor_map q, k, v, dz, dk, dv;
  void *dk_data, *dv_data;        // contiguous [B, seq_k, kv_heads, dim] and dim_v
  void* dq_data;                  // contiguous [B, seq_q, heads, dim]
  float* stats;                   // [B, heads, query tiles, 2, rows]: log2 e lse (infinity: no such row, or no key), delta
  float* dq_sum;                  // [B, heads, query tiles, 2, part], zero at first: fragments of dq / scale (dq.cuh)
  unsigned* turns;                // [B, heads, query tiles, 2], zero at first, or null: dq is summed in any order
  const void *z, *dout;           // z contiguous [B, seq_q, heads, dim_v]
  void* dz_data;                  // like z: dout (1 + out_scale); null without out_scale, then the map sees dout
  const float *lse, *dlse;        // [B, heads, seq_q], packed [heads, seq_q]; dlse may be null
  float* delta;                   // like lse, or null: for the gradient of sinks
  const float* out_scale;         // [heads, dim_v] or null
  const int* kv_head_map;         // [heads] or null
  const int *cu_seqlens_q, *cu_seqlens_k;  // [sequences + 1] or null: packed
  long long dout_stride[3];       // of batch entries, rows, heads, in elements
  int sequences;                  // batch entries, or packed sequences
  int heads, kv_heads, group;     // group: query heads that share a key head, without a map
  int seq_q, seq_k;               // rows of each batch entry, or of all packed sequences together
  int dim, dim_v;
  int q_tiles, k_tiles;           // of a batch entry; packed: bounds on those of all sequences together
  int rows;                       // of a query tile
  int pairs_at_once;              // (batch entry, key head) pairs whose queries and sums should be in L2 at a time
  int left, right;                // the band around the diagonal, -1: open
  float scale, scale_log2;        // scale_log2: plain kernels, scale log2 e, positive
  float cap_outer, cap_inner;     // capped kernels: scores in units of log2 are outer tanh(inner s), or inner s: outer is 0
};
struct BlockParams : Params {
  block_lists::Lists by_keys, by_queries;  // rows of keys that list queries, for the work; and the other way, for turns
};

}  // namespace tkpy::attention_backward
