// The producer of the main kernel (backward.cuh): one warp, of which lane 0 issues.
#pragma once

#include "schedule.cuh"

namespace tkpy::attention_backward {

template <class Kernel>
struct Producer {
  using KTile = typename Kernel::KTile;
  using QTile = typename Kernel::QTile;
  using Stats = typename Kernel::Stats;
  using Work = typename Kernel::Work;
  static constexpr int Rows = QTile::rows, Keys = KTile::rows, Stages = Shape::kStages;

  struct Fill {
    mbarrier *full, *ragged;
    u32 phase = 0;  // of ragged
  };

  // Two tiles and what `more` loads, `bytes` in all; of the tiles, the rows from `valid` on belong to another sequence.
  template <class Tile, class More>
  TK_DEVICE static void fill(Fill& at, bool packed, int valid, Tile& a, const tensor_map& map_a, Tile& b,
                             const tensor_map& map_b, const int (&place)[4], u32 bytes, More more) {
    const bool cut = packed && valid < Tile::rows;
    mbarrier& bar = cut ? *at.ragged : *at.full;
    if (lane_index() == 0) {
      arrive_expect(bar, bytes);
      load(a, gl<Tile, 4>(map_a), place, bar);
      load(b, gl<Tile, 4>(map_b), place, bar);
      more(bar);
    }
    __syncwarp();
    if (!cut) return;
    wait(bar, at.phase);
    at.phase ^= 1;
    constexpr int width = 8, chunks = Tile::cols / width;  // elements of 16 bytes
#pragma unroll 1
    for (int i = lane_index(); i < (Tile::rows - valid) * chunks; i += 32) {
      const int row = valid + i / chunks, col = i % chunks * width;
      *reinterpret_cast<uint4*>(&a.at(row, col)) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(&b.at(row, col)) = make_uint4(0, 0, 0, 0);
    }
    publish_tile();
    __syncwarp();
    if (lane_index() == 0) arrive(*at.full);
  }

  TK_DEVICE static void run(typename Kernel::Shared& shared, const Params& p) {
    typename Kernel::Barriers& bars = shared.barriers;
    const Work work{p};
    ring<Stages> at;
    u32 keys_phase = 1;
    Fill to{nullptr, &bars.ragged};
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
      KeyTile tile;
      if (!work.find(tile, order.task())) continue;
      wait(bars.keys_free, keys_phase);
      keys_phase ^= 1;
      to.full = &bars.keys_full;
      fill(to, work.packed(), tile.in.seq_k - tile.key, shared.k, p.k, shared.v, p.v,
           {tile.in.batch, tile.kv_head, tile.in.k_begin + tile.key, 0}, 2 * KTile::bytes, [](mbarrier&) {});
      for (int head = work.next_head(tile, 0); head < p.heads; head = work.next_head(tile, head + 1))
        for (int step = tile.first; step < tile.end; ++step, at.next()) {
          acquire(bars.steps, at);
          to.full = &bars.steps.full[at.slot];
          fill(to, work.packed(), tile.in.seq_q - step * Rows, shared.q[at.slot], p.q, shared.dz[at.slot], p.dz,
               {tile.in.batch, head, tile.in.q_begin + step * Rows, 0}, 2 * QTile::bytes + Stats::bytes,
               [&](mbarrier& bar) {
                 const long long index = work.index(tile, head) + step;
                 bulk_load(shared.stats[at.slot].data, p.stats + index * Stats::length, Stats::length, bar);
               });
        }
    }
  }
};

}  // namespace tkpy::attention_backward
