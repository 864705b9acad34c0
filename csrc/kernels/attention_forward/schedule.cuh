// Which query tile a task is, and which blocks of keys it needs. Every role of a CTA asks the same questions and gets
// the same answers; nothing is communicated.
#pragma once

#include "kernels/block_lists/walk.cuh"
#include "params.h"

namespace tkpy::attention_forward {

using namespace tk;

struct Tile {
  int batch, head, kv_head;  // coordinates of the tensor maps
  int sequence;              // batch entry, or packed sequence
  int q_begin, k_begin;      // first row of the sequence in q and k
  int seq_q, seq_k;          // its lengths
  int row;                   // first query row of the tile, in the sequence
  int first, end;            // blocks of keys, first <= block < end, visited from the last to the first; with lists: how many
  TK_DEVICE int blocks() const { return end - first; }
  TK_DEVICE int diagonal() const { return seq_k - seq_q; }  // masks are aligned at the bottom right
};

template <int Rows, int Keys, class P = Params>
struct Schedule {
  const P& p;
  static constexpr bool listed = sizeof(P) > sizeof(Params);

  TK_DEVICE bool packed() const { return !listed && p.cu_seqlens_q != nullptr; }
  TK_DEVICE int tasks() const { return (packed() ? 1 : p.sequences) * p.heads * p.tiles; }

  // Longest first: under a causal mask late tiles see most keys, so tiles run downwards; heads that share L2 run side by
  // side. Packed, a warp looks the sequence up; false if there are fewer tiles than the bound.
  TK_DEVICE bool find(Tile& tile, int task) const {
    if (packed()) {
      tile.batch = 0;
      tile.head = task % p.heads;
      if (!find_sequence(tile, p.tiles - 1 - task / p.heads)) return false;
    } else {
      const int pairs = p.sequences * p.heads, section = task / (p.heads_at_once * p.tiles);
      const int first = section * p.heads_at_once, count = min(p.heads_at_once, pairs - first);
      const int within = task - first * p.tiles, pair = first + within % count;
      tile.batch = tile.sequence = pair / p.heads;
      tile.head = pair % p.heads;
      tile.row = (p.tiles - 1 - within / count) * Rows;
      tile.q_begin = tile.k_begin = 0;
      tile.seq_q = p.seq_q;
      tile.seq_k = p.seq_k;
    }
    tile.kv_head = p.kv_head_map ? p.kv_head_map[tile.head] : tile.head / p.group;
    find_blocks(tile);
    if constexpr (listed) {
      const int steps = row(tile).count(tile.first, tile.end);
      tile.first = 0;
      tile.end = steps;
    }
    return true;
  }

  TK_DEVICE block_lists::Row<Keys> row(const Tile& tile) const {
    return {p.lists, tile.batch, tile.head, tile.row / p.lists.block};
  }

  // The blocks that a rule lets the tile see.
  TK_DEVICE void find_blocks(Tile& tile) const {
    const int last = min(tile.row + Rows, tile.seq_q) - 1;
    const int begin = p.left >= 0 ? max(0, tile.row + tile.diagonal() - p.left) : 0;
    const int end = p.right >= 0 ? min(tile.seq_k, last + tile.diagonal() + p.right + 1) : tile.seq_k;
    tile.first = begin / Keys;
    tile.end = end > begin ? (end + Keys - 1) / Keys : tile.first;
  }

 private:
  TK_DEVICE static void bounds(const int* offsets, int n, int total, int& begin, int& length) {
    begin = min(max(offsets[n], 0), total);
    length = max(min(offsets[n + 1], total) - begin, 0);
  }

  // The sequence that holds tile `index` of all sequences' tiles in a row: 32 sequences at a time.
  TK_DEVICE bool find_sequence(Tile& tile, int index) const {
    for (int base = 0; base < p.sequences; base += 32) {
      const int n = base + lane_index();
      int begin = 0, length = 0;
      if (n < p.sequences) bounds(p.cu_seqlens_q, n, p.seq_q, begin, length);
      const int tiles = (length + Rows - 1) / Rows;
      int sum = tiles;  // of lanes 0 .. lane
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane_index() >= step) sum += below;
      }
      const u32 beyond = __ballot_sync(0xffffffffu, sum > index);
      if (beyond != 0) {
        const int lane = __ffs(static_cast<int>(beyond)) - 1;
        tile.row = (index - __shfl_sync(0xffffffffu, sum - tiles, lane)) * Rows;
        tile.q_begin = __shfl_sync(0xffffffffu, begin, lane);
        tile.seq_q = __shfl_sync(0xffffffffu, length, lane);
        tile.sequence = base + lane;
        bounds(p.cu_seqlens_k, tile.sequence, p.seq_k, tile.k_begin, tile.seq_k);
        return true;
      }
      index -= __shfl_sync(0xffffffffu, sum, 31);
    }
    return false;
  }
};

}  // namespace tkpy::attention_forward
