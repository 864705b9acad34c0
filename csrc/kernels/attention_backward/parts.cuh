// The way of dQ's parts out of the registers of one consumer of the main kernel (backward.cuh) into the sums in memory.
#pragma once

#include "layout.cuh"

namespace tkpy::attention_backward {

template <class Kernel>
struct Parts {
  using Part = typename Kernel::Part;
  static constexpr bool Listed = Kernel::Listed, in_turn = Kernel::in_turn;
  static constexpr int part_size = Kernel::part_size;

  typename Kernel::Shared& shared;
  const typename Kernel::Parameters& p;
  const int number;  // of the consumer, 0 or 1
  int own_owed = -1;

  TK_DEVICE static bool leader() { return Kernel::leader(); }

  // The turn to pass when the last part is in memory, the leader's; lists leave no register for it.
  TK_DEVICE int& owed() {
    if constexpr (Listed)
      return shared.listed.owed[number];
    else
      return own_owed;
  }

  // dq[number] is this consumer's again: what it added last has been read or, where turns are taken, is in memory.
  TK_DEVICE void finish() {
    if (!p.turns) return wait_stores_read();
    wait_stores();
    if (owed() >= 0) pass_turn(p.turns + owed());
    owed() = -1;
  }

  // The leader's question: how many tiles of keys add to this query tile before this one.
  TK_DEVICE u32 turn(const KeyTile& tile, int met, int slot) const {
    if constexpr (Listed)
      return shared.listed.steps[slot].turn;
    else
      return typename Kernel::Work{p}.turn(tile, met);
  }

  // Of query tile `step` of the head whose first one is `index`.
  TK_DEVICE int part_of_step(int index, int step) const { return 2 * (index + step) + (in_turn ? 0 : number); }

  // Registers to dq[number], its floats from `first` on.
  TK_DEVICE void stage(const Part& dq, int first) {
    u32 place = ptx::shared_address(shared.dq[number] + first) + 16 * (threadIdx.x % 128);
    ptx::hold(place);
#pragma unroll
    for (int e = 0; e < Part::elements; e += 4)
      ptx::st_shared_v4(place + 512 * e, make_uint4(__float_as_uint(dq.x[0][e]), __float_as_uint(dq.x[0][e + 1]),
                                                    __float_as_uint(dq.x[0][e + 2]), __float_as_uint(dq.x[0][e + 3])));
  }
  TK_DEVICE void begin() {
    if (leader()) finish();
    sync(1 + number, 128);
  }
  TK_DEVICE void add(const KeyTile& tile, int index, int met, int slot) {
    publish_tile();
    sync(1 + number, 128);
    if (!leader()) return;
    const int part = part_of_step(index, met);
    if (p.turns) {
      owed() = part;
      await_turn(p.turns + part, turn(tile, met, slot));
      ptx::fence_proxy_async_global();
    }
    bulk_add(p.dq_sum + static_cast<long long>(part) * part_size, shared.dq[number], in_turn ? 2 * part_size : part_size);
    commit_stores();
  }

  // The same from registers: shared memory is full.
  TK_DEVICE void add_wide(const Part& dq, const KeyTile& tile, int index, int met, int slot) const {
    const int part = part_of_step(index, met);
    if (p.turns) {
      if (leader()) await_turn(p.turns + part, turn(tile, met, slot));
      sync(1 + number, 128);
    }
    float* place = p.dq_sum + static_cast<long long>(index + met) * (2 * part_size) + Kernel::Rows * Kernel::first_column(number);
    place += 4 * (threadIdx.x % 128);
#pragma unroll
    for (int e = 0; e < Part::elements; e += 4)
      ptx::red_add_v4(place + 128 * e, dq.x[0][e], dq.x[0][e + 1], dq.x[0][e + 2], dq.x[0][e + 3]);
    if (p.turns) {
      sync(1 + number, 128);
      if (leader()) pass_turn(p.turns + part);
    }
  }
};

}  // namespace tkpy::attention_backward
