// Which tile of keys a task is, which query tiles and heads it meets. Every role of a CTA asks the same questions and gets
// the same answers; nothing is communicated.
#pragma once

#include "kernels/block_lists/walk.cuh"
#include "params.h"

namespace tkpy::attention_backward {

using namespace tk;

struct Sequence {
  int batch;             // coordinate of the tensor maps
  int q_begin, k_begin;  // its first row in q and k
  int seq_q, seq_k;      // its lengths
  int q_tile;            // its first query tile, among those of a head
  TK_DEVICE int diagonal() const { return seq_k - seq_q; }  // masks are aligned at the bottom right
};

TK_DEVICE void bounds(const int* offsets, int n, int total, int& begin, int& length) {
  begin = min(max(offsets[n], 0), total);
  length = max(min(offsets[n + 1], total) - begin, 0);
}

// The packed sequence whose tiles of `size` rows (of queries or of keys, as `offsets` are) hold tile `index`, and which
// of them it is. A warp looks at 32 sequences at a time; false: the tile is nobody's.
TK_DEVICE bool find_packed(const Params& p, const int* offsets, int total, int size, int index, Sequence& found, int& tile) {
  for (int base = 0; base < p.sequences; base += 32) {
    const int n = base + lane_index();
    int begin = 0, length = 0;
    if (n < p.sequences) bounds(offsets, n, total, begin, length);
    const int first = begin / size + n, tiles = (length + size - 1) / size;
    const u32 here = __ballot_sync(0xffffffffu, index >= first && index < first + tiles);
    if (here == 0) continue;
    const int at = base + __ffs(static_cast<int>(here)) - 1;
    found.batch = 0;
    bounds(p.cu_seqlens_q, at, p.seq_q, found.q_begin, found.seq_q);
    bounds(p.cu_seqlens_k, at, p.seq_k, found.k_begin, found.seq_k);
    found.q_tile = found.q_begin / p.rows + at;
    tile = index - __shfl_sync(0xffffffffu, first, at % 32);
    return true;
  }
  return false;
}

TK_DEVICE void whole_batch_entry(const Params& p, int batch, Sequence& found) {
  found.batch = batch;
  found.q_begin = found.k_begin = found.q_tile = 0;
  found.seq_q = p.seq_q;
  found.seq_k = p.seq_k;
}

// A query tile of a head, and where what is kept of it lies.
struct QueryTile {
  Sequence in;
  int head, row;  // its first row, in the sequence
  int index;      // among all query tiles of all heads
};

// Task by task over all heads' query tiles, for the kernels before and after the main one.
TK_DEVICE bool find_queries(const Params& p, int task, QueryTile& tile) {
  int at = task % p.q_tiles;
  const int pair = task / p.q_tiles;
  tile.head = pair % p.heads;
  tile.index = task;
  if (!p.cu_seqlens_q) {
    whole_batch_entry(p, pair / p.heads, tile.in);
  } else if (!find_packed(p, p.cu_seqlens_q, p.seq_q, p.rows, at, tile.in, at)) {
    return false;
  }
  tile.row = at * p.rows;
  return true;
}

struct KeyTile {
  Sequence in;
  int kv_head;
  int key;         // its first key, in the sequence
  int first, end;  // query tiles that see it; with lists, if they are listed
};

template <int Rows, int Keys, class P = Params>
struct Schedule {
  const P& p;
  static constexpr bool listed = sizeof(P) > sizeof(Params);

  TK_DEVICE bool packed() const { return !listed && p.cu_seqlens_q != nullptr; }
  TK_DEVICE int tasks() const { return (packed() ? 1 : p.sequences) * p.kv_heads * p.k_tiles; }

  // Heads that share L2 run side by side. Longest first: under a causal mask early keys are seen by most queries, so tiles
  // run upwards; downwards where dq has an order (turn). False: no tile.
  TK_DEVICE bool find(KeyTile& tile, int task) const {
    const int pairs = (packed() ? 1 : p.sequences) * p.kv_heads, section = task / (p.pairs_at_once * p.k_tiles);
    const int first = section * p.pairs_at_once, count = min(p.pairs_at_once, pairs - first);
    const int within = task - first * p.k_tiles, pair = first + within % count;
    int at = p.turns ? p.k_tiles - 1 - within / count : within / count;
    tile.kv_head = pair % p.kv_heads;
    if (!packed())
      whole_batch_entry(p, pair / p.kv_heads, tile.in);
    else if (!find_packed(p, p.cu_seqlens_k, p.seq_k, Keys, at, tile.in, at))
      return false;
    tile.key = at * Keys;
    const int diagonal = tile.in.diagonal(), last = min(tile.key + Keys, tile.in.seq_k) - 1;
    const int begin = p.right >= 0 ? max(0, tile.key - diagonal - p.right) : 0;
    const int end = p.left >= 0 ? min(tile.in.seq_q, last - diagonal + p.left + 1) : tile.in.seq_q;
    tile.first = begin / Rows;
    tile.end = end > begin ? (end + Rows - 1) / Rows : tile.first;
    return true;
  }

  // The first query head from `head` on that uses the tile's key head; p.heads: none.
  TK_DEVICE int next_head(const KeyTile& tile, int head) const {
    if (!p.kv_head_map) {
      head = max(head, tile.kv_head * p.group);
      return head < (tile.kv_head + 1) * p.group ? head : p.heads;
    }
    while (head < p.heads && p.kv_head_map[head] != tile.kv_head) ++head;
    return head;
  }

  // The query tiles that a query head lists.
  TK_DEVICE block_lists::Row<Rows> row(const KeyTile& tile, int head) const {
    return {p.by_keys, tile.in.batch, head, tile.key / p.by_keys.block};
  }
  TK_DEVICE int steps(const KeyTile& tile, int head) const {
    if constexpr (listed)
      return row(tile, head).count(tile.first, tile.end);
    else
      return tile.end - tile.first;
  }

  // Of the sequence's first query tile, among all query tiles of all heads: below 2^30.
  TK_DEVICE int index(const KeyTile& tile, int head) const {
    return (tile.in.batch * p.heads + head) * p.q_tiles + tile.in.q_tile;
  }

  // How many tiles of keys add to query tile `step` before this one, where they take turns: from the last keys that it
  // sees downwards, in the order of tasks. The tile whose turn it is belongs to the first task that is not over, or to one
  // that waits for no other: some CTA can always go on.
  TK_DEVICE u32 turn(const KeyTile& tile, int step) const {
    return static_cast<u32>(last_tile(tile, step) - tile.key / Keys);
  }
  TK_DEVICE u32 listed_turn(const KeyTile& tile, int head, int step) const {  // by a whole warp
    const block_lists::Row<Keys> row(p.by_queries, tile.in.batch, head, step * Rows / p.by_queries.block);
    return static_cast<u32>(row.count(tile.key / Keys + 1, last_tile(tile, step) + 1));
  }

 private:
  // The last tile of keys that a rule lets query tile `step` see.
  TK_DEVICE int last_tile(const KeyTile& tile, int step) const {
    const int row = min((step + 1) * Rows, tile.in.seq_q) - 1, last = tile.in.seq_k - 1;
    const int highest = p.right >= 0 ? min(last, row + tile.in.diagonal() + p.right) : last;
    return highest / Keys;
  }
};

}  // namespace tkpy::attention_backward
