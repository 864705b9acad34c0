// A consumer of the main kernel (backward.cuh): a warpgroup that makes the products of every step.
#pragma once

#include "parts.cuh"
#include "sums.cuh"

namespace tkpy::attention_backward {

template <class Kernel>
struct Consumer {
  using QTile = typename Kernel::QTile;
  using ZTile = typename Kernel::ZTile;
  using Part = typename Kernel::Part;
  using Pairs = typename Kernel::Pairs;
  using Shared = typename Kernel::Shared;
  using Parameters = typename Kernel::Parameters;
  using Work = typename Kernel::Work;
  static constexpr Shape shape = Kernel::shape;
  static constexpr int Rows = Kernel::Rows, Keys = Kernel::Keys, Columns = Kernel::Columns, both = Kernel::both;
  static constexpr bool wide = Kernel::wide, in_turn = Kernel::in_turn, staged = Kernel::staged;
  static constexpr bool dp_later = Kernel::dp_later, Listed = Kernel::Listed;
  static constexpr int part_size = Kernel::part_size;

  Shared& shared;
  const Parameters& p;
  const int number;  // 0 or 1
  ring<Kernel::Stages> at;
  u32 keys_phase = 0;
  Parts<Kernel> parts;
  Sums<Kernel> sums;

  TK_DEVICE Consumer(Shared& shared_, const Parameters& p_, int number_)
      : shared(shared_), p(p_), number(number_), parts{shared_, p_, number_}, sums{shared_, p_, number_, {}, {}} {
    if (Kernel::leader()) parts.owed() = -1;
  }

  // Waits for the next step, and says which query tile it meets; without lists it is `step`. What a list says is read by the
  // lane that will release the slot.
  TK_DEVICE int meet(int step) {
    await(shared.barriers.steps, at);
    if constexpr (Listed) {
      if (lane_index() == 0) step = shared.listed.steps[at.slot].step.tile;
      step = __shfl_sync(0xffffffffu, step, 0);
    }
    return step;
  }
  // The element mask of 64 keys from `key` on, queries from `query` on.
  TK_DEVICE Bits bits(const KeyTile& tile, int key, int query) const {
    if constexpr (Listed) {
      block_lists::Step found = {};
      if (lane_index() == 0) found = shared.listed.steps[at.slot].step;
      const int slot = __shfl_sync(0xffffffffu, found.slot, 0);
      if (slot >= 0) {
        const int size = p.by_keys.block, pitch = size / 16;  // in 16 bits
        const unsigned short* masks;
        if constexpr (staged) {
          masks = reinterpret_cast<const unsigned short*>(shared.masks.rows[at.slot]);
        } else {
          const int row = __shfl_sync(0xffffffffu, found.tile, 0) * Rows % size;
          masks = reinterpret_cast<const unsigned short*>(p.by_keys.masks) + (static_cast<long long>(slot) * size + row) * pitch;
        }
        return {masks + query * pitch + (tile.key + key) % size / 16 + warp_index() % 4, pitch};
      }
    }
    return {};
  }

  // `index`: of the head's first query tile.
  TK_DEVICE void step(const KeyTile& tile, int index, int step) {
    const QTile& q = shared.q[at.slot];
    const ZTile& dz = shared.dz[at.slot];
    const float* numbers = shared.stats[at.slot].data;
    auto& ds_tile = shared.ds[in_turn ? number : at.slot];
    typename Pairs::Tile s, dp;
    typename Pairs::Operand weights, ds;
    Part dq;
    const int keys = in_turn ? 0 : 64 * number;
    const int met = meet(step);
    int half = keys;  // held: or descriptors and addresses made of it wait in registers between their uses
    ptx::hold(half);
    mma_fence();
    mma_ABt(s, subtile<64, shape.dim>(shared.k, half, 0), q, false);
    mma_commit();
    if constexpr (!dp_later) {
      mma_ABt(dp, subtile<64, Kernel::Values>(shared.v, half, 0), dz, false);
      mma_commit();
      mma_wait<1>(s);
    } else {
      mma_wait(s);
    }
    Pairs::weigh(weights, s, p, tile.in, tile.key + keys, met * Rows, numbers, bits(tile, keys, 0));
    mma_fence();
    if constexpr (dp_later) {
      mma_ABt(dp, subtile<64, Kernel::Values>(shared.v, half, 0), dz, false);
      mma_commit();
    }
    mma_AB(sums.dv, weights, dz);
    mma_commit();
    if constexpr (dp_later)
      mma_wait(dp, sums.dv);
    else
      mma_wait<1>(dp);
    Pairs::differentiate(ds, dp, s, numbers + Rows);
    int row = keys + 16 * (warp_index() % 4);
    ptx::hold(row);
    store(ds_tile, ds, row, 0);
    publish_tile();
    if constexpr (in_turn)
      sync(1 + number, 128);
    else
      sync(both, 256);
    ptx::hold(half);
    mma_fence();
    if constexpr (Rows == 128)
      mma_AtB(dq, subtile<Keys, 64>(ds_tile, 0, half), shared.k, false);
    else
      mma_AtB(dq, ds_tile, subtile<Keys, Part::cols>(shared.k, 0, half * Part::cols / 64), false);
    mma_commit();
    mma_AB(sums.dk, ds, q);
    mma_commit();
    mma_wait<1>(dq);
    parts.begin();
    parts.stage(dq, 0);
    if constexpr (in_turn && Part::cols < shape.dim) {  // the other half of the columns
      mma_fence();
      mma_AtB(dq, ds_tile, subtile<Keys, 64>(shared.k, 0, 64), false);
      mma_commit();
      mma_wait(dq);
      parts.stage(dq, part_size);
    }
    parts.add(tile, index, met, at.slot);
    mma_wait(sums.dk, sums.dv);
    release(shared.barriers.steps, at);
    at.next();
  }

  // The same where consumers share the columns: each makes the weights and dS of half the queries, for both.
  TK_DEVICE void wide_step(const KeyTile& tile, int index, int step) {
    QTile& q = shared.q[at.slot];
    ZTile& dz = shared.dz[at.slot];
    auto &ds_tile = shared.ds[at.slot], &weights_tile = shared.weights[at.slot];
    const int query = Rows / 2 * number;
    const float* numbers = shared.stats[at.slot].data + query;
    typename Pairs::Tile s, dp;
    typename Pairs::Operand weights, ds;
    Part dq;
    const int met = meet(step);
    mma_fence();
    mma_ABt(s, shared.k, subtile<Rows / 2, shape.dim>(q, query, 0), false);
    mma_commit();
    mma_ABt(dp, shared.v, subtile<Rows / 2, Kernel::Values>(dz, query, 0), false);
    mma_commit();
    mma_wait<1>(s);
    Pairs::weigh(weights, s, p, tile.in, tile.key, met * Rows + query, numbers, bits(tile, 0, query));
    store(weights_tile, weights, 16 * (warp_index() % 4), query);
    mma_wait(dp);
    Pairs::differentiate(ds, dp, s, numbers + Rows);
    store(ds_tile, ds, 16 * (warp_index() % 4), query);
    publish_tile();
    sync(both, 256);
    const int column = Kernel::first_column(number);
    mma_fence();
    mma_AtB(dq, ds_tile, subtile<Keys, Columns>(shared.k, 0, column), false);
    mma_commit();
    mma_AB(sums.dv, weights_tile, subtile<Rows, Kernel::ValueColumns>(dz, 0, Kernel::first_value_column(number)));
    mma_AB(sums.dk, ds_tile, subtile<Rows, Columns>(q, 0, column));
    mma_commit();
    mma_wait<1>(dq);
    parts.add_wide(dq, tile, index, met, at.slot);
    mma_wait(sums.dk, sums.dv);
    release(shared.barriers.steps, at);
    at.next();
  }

  // A step that is the other consumer's. Seen here too, or the parity of a slot's phases would be ambiguous.
  TK_DEVICE void leave_step() {
    await(shared.barriers.steps, at);
    release(shared.barriers.steps, at);
    at.next();
  }

  TK_DEVICE void run() {
    const Work work{p};
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
      KeyTile tile;
      if (!work.find(tile, order.task())) continue;
      zero(sums.dk);
      zero(sums.dv);
      u32 met = 0;  // steps of this tile, of which consumers take every other one
      wait(shared.barriers.keys_full, keys_phase);
      keys_phase ^= 1;
      for (int head = work.next_head(tile, 0); head < p.heads; head = work.next_head(tile, head + 1)) {
        const int index = work.index(tile, head);
        const int first = Listed ? 0 : tile.first, end = Listed ? work.steps(tile, head) : tile.end;
        for (int i = first; i < end; ++i)
          if (in_turn && met++ % 2 != number)
            leave_step();
          else if constexpr (wide)
            wide_step(tile, index, i);
          else
            step(tile, index, i);
      }
      if constexpr (!wide)
        if (Kernel::leader()) parts.finish();
      if constexpr (in_turn) sums.join();
      mul(sums.dk, sums.dk, p.scale);
      sync(both, 256);  // no product with k and v is left
      sums.store_all(tile);
      if (Kernel::leader()) arrive(shared.barriers.keys_free);
    }
    if (Kernel::leader()) wait_stores();
  }
};

}  // namespace tkpy::attention_backward
