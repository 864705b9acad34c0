// The producer of the main kernel (backward.cuh): one warp, of which lane 0 issues.
#pragma once

#include "schedule.cuh"

namespace tkpy::attention_backward {

template <class Kernel>
struct Producer {
  using KTile = typename Kernel::KTile;
  using VTile = typename Kernel::VTile;
  using QTile = typename Kernel::QTile;
  using ZTile = typename Kernel::ZTile;
  using Stats = typename Kernel::Stats;
  using Work = typename Kernel::Work;
  using Parameters = typename Kernel::Parameters;
  static constexpr int Rows = QTile::rows, Keys = KTile::rows, Stages = Kernel::Stages;

  struct Fill {
    mbarrier *full, *ragged;
    u32 phase = 0;  // of ragged
  };

  // Two tiles and what `more` loads, `bytes` in all; of the tiles, the rows from `valid` on belong to another sequence.
  template <class A, class B, class More>
  TK_DEVICE static void fill(Fill& at, bool packed, int valid, A& a, const tensor_map& map_a, B& b, const tensor_map& map_b,
                             const int (&place)[4], u32 bytes, More more) {
    const bool cut = packed && valid < A::rows;
    mbarrier& bar = cut ? *at.ragged : *at.full;
    if (lane_index() == 0) {
      arrive_expect(bar, bytes);
      load(a, gl<A, 4>(map_a), place, bar);
      load(b, gl<B, 4>(map_b), place, bar);
      more(bar);
    }
    __syncwarp();
    if (!cut) return;
    wait(bar, at.phase);
    at.phase ^= 1;
    constexpr int width = 8, chunks = A::cols / width;  // elements of 16 bytes; b is no wider
#pragma unroll 1
    for (int i = lane_index(); i < (A::rows - valid) * chunks; i += 32) {
      const int row = valid + i / chunks, col = i % chunks * width;
      *reinterpret_cast<uint4*>(&a.at(row, col)) = make_uint4(0, 0, 0, 0);
      if (B::cols == A::cols || col < B::cols) *reinterpret_cast<uint4*>(&b.at(row, col)) = make_uint4(0, 0, 0, 0);
    }
    publish_tile();
    __syncwarp();
    if (lane_index() == 0) arrive(*at.full);
  }

  // Queries, their cotangents and numbers, for one step.
  TK_DEVICE static void fetch(typename Kernel::Shared& shared, const Parameters& p, const KeyTile& tile, int head,
                              ring<Stages>& at, Fill& to, const block_lists::Step& step) {
    typename Kernel::Barriers& bars = shared.barriers;
    const Work work{p};
    u32 turn = 0;
    if constexpr (Work::listed)
      if (p.turns) turn = work.listed_turn(tile, head, step.tile);
    acquire(bars.steps, at);
    to.full = &bars.steps.full[at.slot];
    u32 bytes = QTile::bytes + ZTile::bytes + Stats::bytes;
    if constexpr (Work::listed) {
      if (lane_index() == 0) shared.listed.steps[at.slot] = {step, turn};
      if (Kernel::staged && step.slot >= 0) bytes += Rows * p.by_keys.block / 8;
    }
    fill(to, work.packed(), tile.in.seq_q - step.tile * Rows, shared.q[at.slot], p.q, shared.dz[at.slot], p.dz,
         {tile.in.batch, head, tile.in.q_begin + step.tile * Rows, 0}, bytes, [&](mbarrier& bar) {
           const long long index = work.index(tile, head) + step.tile;
           bulk_load(shared.stats[at.slot].data, p.stats + index * Stats::length, Stats::length, bar);
           if constexpr (Kernel::staged) {
             const int size = p.by_keys.block;
             const long long row = static_cast<long long>(step.slot) * size + step.tile * Rows % size;
             if (step.slot >= 0)
               bulk_load(shared.masks.rows[at.slot], p.by_keys.masks + row * (size / 8), Rows * size / 8, bar);
           }
         });
    at.next();
  }

  TK_DEVICE static void run(typename Kernel::Shared& shared, const Parameters& p) {
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
           {tile.in.batch, tile.kv_head, tile.in.k_begin + tile.key, 0}, KTile::bytes + VTile::bytes, [](mbarrier&) {});
      for (int head = work.next_head(tile, 0); head < p.heads; head = work.next_head(tile, head + 1))
        if constexpr (Work::listed) {
          work.row(tile, head).each(tile.first, tile.end, [&](const block_lists::Step& step) {
            fetch(shared, p, tile, head, at, to, step);
          });
        } else {
          for (int step = tile.first; step < tile.end; ++step) fetch(shared, p, tile, head, at, to, {step, -1});
        }
    }
  }
};

}  // namespace tkpy::attention_backward
