// The tiles of a row of block lists (lists.h), in the tile size of a kernel: partial blocks first, then full ones, a block
// as block / Size tiles. A warp reads 32 entries at a time.
#pragma once

#include "lists.h"
#include "tk/tk.cuh"

namespace tkpy::block_lists {

using namespace tk;

// What one step of a kernel meets: a tile, and its block's element mask, or -1.
struct Step {
  int tile, slot;
};

template <int Size>
struct Row {
  const int *full, *partial, *slots;
  int fulls, partials, tiles;  // tiles: of a block

  TK_DEVICE Row(const Lists& lists, int batch, int head, int row) {
    const long long at = static_cast<long long>(batch) * lists.of_batch + head * lists.of_head + row;
    fulls = lists.full_count[at];
    partials = lists.partial_count[at];
    full = lists.full_index + at * lists.most_full;
    partial = lists.partial_index + at * lists.most_partial;
    slots = lists.partial_slot + at * lists.most_partial;
    tiles = lists.block / Size;
  }
  TK_DEVICE int steps() const { return (fulls + partials) * tiles; }

  // Of steps base .. base + 31, which are of tiles first <= tile < end; `mine` is this lane's.
  TK_DEVICE u32 listed(Step& mine, int base, int first, int end) const {
    const int n = base + lane_index(), entry = n / tiles;
    mine = {-1, -1};
    if (n < steps()) {
      if (entry < partials)
        mine = {partial[entry] * tiles + n % tiles, slots[entry]};
      else
        mine.tile = full[entry - partials] * tiles + n % tiles;
    }
    return __ballot_sync(0xffffffffu, n < steps() && mine.tile >= first && mine.tile < end);
  }

  TK_DEVICE int count(int first, int end) const {
    Step step;
    int sum = 0;
    for (int base = 0; base < steps(); base += 32) sum += __popc(listed(step, base, first, end));
    return sum;
  }

  // visit(step) by the whole warp, for one after the other.
  template <class Visit>
  TK_DEVICE void each(int first, int end, Visit visit) const {
    for (int base = 0; base < steps(); base += 32) {
      Step mine;
      for (u32 left = listed(mine, base, first, end); left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        visit(Step{__shfl_sync(0xffffffffu, mine.tile, lane), __shfl_sync(0xffffffffu, mine.slot, lane)});
      }
    }
  }
};

}  // namespace tkpy::block_lists
