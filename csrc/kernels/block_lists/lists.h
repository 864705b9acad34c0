// Lists of blocks (tkpy's BlockMask) as kernels get them: of each row of blocks, those that are seen completely, and those
// that are seen in part, with the element mask that applies. A row of blocks is of queries and lists blocks of keys, or,
// transposed, of keys and lists blocks of queries. Blocks are squares of 64 or 128.
#pragma once

namespace tkpy::block_lists {

struct Lists {
  const int *full_count, *partial_count;                  // [B, H, rows]
  const int *full_index, *partial_index, *partial_slot;   // [B, H, rows, most]; the first `count` of a row, ascending
  const unsigned char* masks;  // [slots, block, block / 8]: bit j % 8 of byte j / 8 of row i: query i sees key j
  int most_full, most_partial;
  int of_batch, of_head;       // rows from one batch entry, or head, to the next; 0: all share one
  int block;
};

}  // namespace tkpy::block_lists
