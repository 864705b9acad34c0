// What the two sides of the kernels that build lists of blocks share.
#pragma once

namespace tkpy::block_lists {

struct OutLists {
  int *full_count, *partial_count;                  // [B, H, rows]
  int *full_index, *partial_index, *partial_slot;   // [B, H, rows, most]
  int most_full, most_partial;
};

struct Params {
  const float* scores;           // [B, H, q_blocks, k_blocks], of which the `most` highest of a row are seen; or null
  const unsigned char* table;    // the same shape, not 0: seen; or null
  OutLists by_queries, by_keys;
  unsigned char* state;          // [B, H, q_blocks, k_blocks]: 0 not seen, 1 seen, 2 and 3 seen in part
  unsigned char* masks;          // [2, block, block / 8], packed bits: the element masks of the diagonal
  int pairs;                     // of batch entries and heads
  int q_blocks, k_blocks, seq_q, seq_k, block, most;
  int causal;                    // pairs with j > i + seq_k - seq_q are not seen
};

}  // namespace tkpy::block_lists
