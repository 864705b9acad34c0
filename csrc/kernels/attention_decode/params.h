// What the two sides of attention_decode share: the parameter block and the shapes of its kernels.
#pragma once

namespace tkpy::attention_decode {

constexpr int kWarps = 4;
constexpr int kRows = 16;  // query rows of a CTA: those of mma.sync

// One kernel: the widest q, k (`dim`) and v (`dim_v`) it takes, keys of a warp's tile, tiles under way. Narrower tensors
// are served too: the missing columns are filled with zeros and not written.
struct Shape {
  int dim, dim_v, keys, stages;
  constexpr int tile_bytes() const { return 2 * kWarps * stages * keys * (dim + dim_v); }
  constexpr int merge_bytes() const { return 4 * kWarps * kRows * (dim_v + 8 + 2); }
  constexpr int shared_bytes() const { return tile_bytes() > merge_bytes() ? tile_bytes() : merge_bytes(); }
};
constexpr Shape kShapes[] = {{64, 64, 32, 3}, {128, 128, 32, 3}, {192, 128, 16, 4}, {256, 256, 16, 3}};

// Strides in elements; columns are contiguous.
struct Strides {
  long long outer, row, head;  // outer: a batch entry of q, a page of a cache
};
struct Params {
  const void *q, *k, *v;
  Strides q_at, k_at, v_at;
  void* out;                 // contiguous [B, seq_q, heads, dim_v]
  float* lse;                // [B, heads, seq_q]
  float* partial_out;        // [splits, B, seq_q, heads, dim_v], or null: one split
  float* partial_lse;        // [splits, B, heads, seq_q]
  const int* seqlens;        // [B]
  const int* starts;         // [B] or null
  const int* block_table;    // [B, table_width] or null: page b is sequence b
  const float* sinks;        // [heads] or null
  const int* kv_head_map;    // [heads] or null
  int batch, seq_q, heads, kv_heads, dim, dim_v;
  int group;                 // query heads packed into the rows of a key head; 1 with a map
  int row_tiles, splits;
  int pages, page, table_width, capacity;  // capacity: keys that a sequence may have
  int left, right;           // the band around the diagonal, -1: open
  float inner, outer;        // scores in units of log2 are outer tanh(inner s), or inner s: outer is 0
};

}  // namespace tkpy::attention_decode
