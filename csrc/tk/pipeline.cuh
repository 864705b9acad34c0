// Producer and consumers, as parts: a channel of slots between them, an order of tasks for persistent CTAs, and the
// whole kernel made of both (`specialised`), for work of the form: for every task, for every step, load, then compute.
#pragma once

#include "mma.cuh"
#include "tma.cuh"

namespace tk {

// ---- Channel ----------------------------------------------------------------------------------------------------
// The barriers of a ring of Stages slots; the slots themselves are the kernel's own. Both sides walk with a ring:
//   producer   acquire -> fill slot at.slot, completing on full[at.slot] -> at.next()
//   consumer   await -> use the slot -> release -> at.next()
template <int Stages>
struct channel {
  static constexpr int stages = Stages;
  mbarrier full[Stages], free[Stages];
};
// One thread. `fillers`: arrivals that make a slot full (1 for TMA); `users`: arrivals that free it, such as one a warp.
template <int Stages>
TK_DEVICE void init(channel<Stages>& c, u32 fillers, u32 users) {
  for (int slot = 0; slot < Stages; ++slot) {
    init(c.full[slot], fillers);
    init(c.free[slot], users);
  }
}
template <int Stages>
TK_DEVICE void acquire(channel<Stages>& c, const ring<Stages>& at) {
  wait(c.free[at.slot], at.parity ^ 1);
}
template <int Stages>
TK_DEVICE void await(channel<Stages>& c, const ring<Stages>& at) {
  wait(c.full[at.slot], at.parity);
}
// A warp has done with a slot: one arrival.
template <int Stages>
TK_DEVICE void release(channel<Stages>& c, const ring<Stages>& at) {
  if (lane_index() == 0) arrive(c.free[at.slot]);
}

// ---- Order of tasks for a persistent grid -----------------------------------------------------------------------
// Worker `index` of `workers` takes one task of every round of `workers`, forwards in even rounds and backwards in odd
// ones. With tasks sorted by cost the sums stay close: who got the longest of one round gets the shortest of the next.
struct snake {
  int index, workers, round = 0;
  TK_DEVICE snake(int index_, int workers_) : index(index_), workers(workers_) {}
  TK_DEVICE static snake of_ctas() { return {static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)}; }
  TK_DEVICE int task() const { return snake_task(round, index, workers); }
  // Tasks grow with the rounds, so the first one beyond `tasks` in a worker's own sequence ends it.
  TK_DEVICE bool more(int tasks) const { return task() < tasks; }
  TK_DEVICE void next() { ++round; }
};

// ---- Kernel -----------------------------------------------------------------------------------------------------
// `Work` describes it, and is made from the kernel's parameters:
//   struct Slot                                       tiles that one step needs
//   struct Scratch                                    shared memory of one consumer, for its way out
//   struct State                                      registers of a consumer
//   static constexpr int stages, consumers            slots; consumer warpgroups of 128 threads
//   static constexpr int producer_registers, consumer_registers
//   int tasks() const; int steps(int task) const
//   void load(Slot&, mbarrier& full, int task, int step) const        one thread: arrive_expect, then TMA loads
//   void begin(State&, int task, int consumer) const
//   void step(State&, Slot&, int task, int step, int consumer) const  products up to their mma_commit
//   void finish(State&, Scratch&, int task, int consumer) const       after all products are over
// block 128 (1 + consumers), dynamic shared memory sizeof(specialised<Work>::Shared)
//   channel   full: 1 arrival + bytes, waited by all consumers      free: a lane of every consumer warp, by the producer
// A step's products run under those of the next: a slot is released one step later, when mma_wait<1> has covered it.
template <class Work>
struct specialised {
  static constexpr int threads = 128 * (1 + Work::consumers);
  static_assert(Work::consumers >= 1 && Work::consumers <= 3, "a specialised kernel has 1 to 3 consumer warpgroups");
  static_assert(Work::producer_registers + Work::consumers * Work::consumer_registers <= 512,
                "the registers of the warpgroups must fit in the SM: at most 512 in all");
  struct Shared {
    typename Work::Slot slot[Work::stages];
    typename Work::Scratch scratch[Work::consumers];
    channel<Work::stages> filled;
  };

  TK_DEVICE static void produce(Shared& shared, const Work& work) {
    ring<Work::stages> at;
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next())
      for (int step = 0, steps = work.steps(order.task()); step < steps; ++step, at.next()) {
        acquire(shared.filled, at);
        work.load(shared.slot[at.slot], shared.filled.full[at.slot], order.task(), step);
      }
  }

  TK_DEVICE static void consume(Shared& shared, const Work& work, int consumer) {
    ring<Work::stages> at, done;
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
      typename Work::State state;
      const int task = order.task();
      work.begin(state, task, consumer);
      for (int step = 0, steps = work.steps(task); step < steps; ++step, at.next()) {
        await(shared.filled, at);
        work.step(state, shared.slot[at.slot], task, step, consumer);
        if (step == 0) continue;
        mma_wait<1>();
        release(shared.filled, done);
        done.next();
      }
      mma_wait();
      if (work.steps(task) > 0) {
        release(shared.filled, done);
        done.next();
      }
      work.finish(state, shared.scratch[consumer], task, consumer);
    }
  }

  TK_DEVICE static void run(Shared& shared, const Work& work) {
    if (threadIdx.x == 0) {
      init(shared.filled, 1, 4 * Work::consumers);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup_index() == 0) {
      give_registers<Work::producer_registers>();
      if (threadIdx.x == 0) produce(shared, work);
    } else {
      take_registers<Work::consumer_registers>();
      consume(shared, work, warpgroup_index() - 1);
    }
  }
};

}  // namespace tk
