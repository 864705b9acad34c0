// Barriers and roles: what waits for what.
#pragma once

#include "group.cuh"
#include "ptx.cuh"

namespace tk {

// An mbarrier in shared memory. A phase is over when its arrivals and its expected bytes have all come; then the next
// begins. Waiting for the parity of a phase that is not over blocks; a fresh barrier passes parity 1.
struct mbarrier {
  u64 state;
  TK_DEVICE u32 address() const { return ptx::shared_address(&state); }
};

// One thread initialises; publish_barriers() and a CTA (cluster) barrier come before any use.
TK_DEVICE void init(mbarrier& bar, u32 arrivals) { ptx::mbarrier_init(bar.address(), arrivals); }
TK_DEVICE void publish_barriers() {
  ptx::fence_mbarrier_init();
  ptx::fence_proxy_async();
}
TK_DEVICE void arrive(mbarrier& bar) { ptx::mbarrier_arrive(bar.address()); }
TK_DEVICE void arrive(mbarrier& bar, u32 count) { ptx::mbarrier_arrive(bar.address(), count); }
// Arrives, and takes one from the arrivals that later phases need.
TK_DEVICE void leave(mbarrier& bar) { ptx::mbarrier_arrive_drop(bar.address()); }
// At the same barrier of CTA `rank` of the cluster.
TK_DEVICE void arrive_at(mbarrier& bar, u32 rank) { ptx::mbarrier_arrive_cluster(ptx::mapa(bar.address(), rank)); }
// The same, cheaper, of who has only read: a slot that TMA fills next. That CTA sees no write of this thread by it.
TK_DEVICE void hand_back_at(mbarrier& bar, u32 rank) { ptx::mbarrier_arrive_remote(ptx::mapa(bar.address(), rank)); }
// One arrival, and `bytes` that TMA loads will bring.
TK_DEVICE void arrive_expect(mbarrier& bar, u32 bytes) { ptx::mbarrier_arrive_expect_tx(bar.address(), bytes); }
TK_DEVICE void arrive_expect_at(mbarrier& bar, u32 bytes, u32 rank) {
  ptx::mbarrier_arrive_expect_tx_cluster(ptx::mapa(bar.address(), rank), bytes);
}
// `bytes` more, without arriving.
TK_DEVICE void expect(mbarrier& bar, u32 bytes) { ptx::mbarrier_expect_tx(bar.address(), bytes); }
// Whether the phase of `parity` is over; does not block.
TK_DEVICE bool passed(mbarrier& bar, u32 parity) { return ptx::mbarrier_test_wait(bar.address(), parity); }
TK_DEVICE void wait(mbarrier& bar, u32 parity) {
  while (!ptx::mbarrier_try_wait(bar.address(), parity)) {
  }
}
// For barriers at which threads of other CTAs arrive.
TK_DEVICE void wait_cluster(mbarrier& bar, u32 parity) {
  while (!ptx::mbarrier_try_wait_cluster(bar.address(), parity)) {
  }
}

// Position in a ring of Stages slots: the slot, and the parity of the phase in which it is filled.
template <int Stages>
struct ring {
  int slot = 0;
  u32 parity = 0;
  TK_DEVICE void next() {
    if (++slot == Stages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Ends the barrier's life, so that its memory can be used otherwise or initialised again. One thread.
TK_DEVICE void end(mbarrier& bar) { ptx::mbarrier_inval(bar.address()); }

// Named barrier `id` (1..15) over `threads`, a multiple of 32: those that sync wait for all, those that arrive do not
// wait. 0 is __syncthreads.
TK_DEVICE void sync(int id, int threads) { ptx::bar_sync(id, threads); }
TK_DEVICE void arrive(int id, int threads) { ptx::bar_arrive(id, threads); }

// Turns of CTAs that run at the same time, by a counter in global memory that begins at 0: one thread each. What was
// written before pass_turn (bulk copies: and waited for, wait_stores) is seen after await_turn.
TK_DEVICE void await_turn(const u32* counter, u32 turn) {
  while (ptx::ld_acquire_gpu(counter) != turn) {
  }
}
TK_DEVICE void pass_turn(u32* counter) { ptx::red_release_gpu_add(counter, 1); }

TK_DEVICE void cluster_arrive() { ptx::cluster_arrive(); }
TK_DEVICE void cluster_wait() { ptx::cluster_wait(); }
TK_DEVICE void cluster_sync() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}
TK_DEVICE int cluster_rank() { return static_cast<int>(ptx::cluster_rank()); }

// The register pool of the CTA: producers give, consumers take (all warps of a warpgroup together).
template <int Registers>
TK_DEVICE void give_registers() {
  ptx::setmaxnreg_dec<Registers>();
}
template <int Registers>
TK_DEVICE void take_registers() {
  ptx::setmaxnreg_inc<Registers>();
}

// Programmatic dependent launch: before the first read of what the previous kernel wrote; after the last write.
TK_DEVICE void wait_for_previous_grid() { ptx::griddepcontrol_wait(); }
TK_DEVICE void launch_next_grid() { ptx::griddepcontrol_launch_dependents(); }

}  // namespace tk
