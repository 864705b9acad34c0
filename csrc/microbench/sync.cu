// What it costs to wait for each other: barriers of a CTA, a cluster and the grid, mbarriers, fences, register
// pools.
// out  records[ctas], sink[threads] = the number of barriers that this thread has passed, or what was handed over
// kernels  sync_threads, sync_named      iterations * 8 of all threads of the CTA
//          mbarrier_all        iterations times: all threads arrive at one mbarrier and wait for its phase
//          mbarrier_pingpong   iterations round trips between two warps over two mbarriers
//          cluster_barrier, cluster_barrier_relaxed   iterations * 8 arrive (release or relaxed) and wait of the cluster
//          grid_barrier        iterations over a counter in global memory, which starts at 0; a cooperative launch
//          fence_<scope>       iterations * 8 fences, each behind `stores` (0 or 1) stores to the thread's own word
//          register_pool       iterations times: setmaxnreg.dec to 40, setmaxnreg.inc to 232, one warpgroup; between two
//                              of them its warps must meet (PTX ISA, setmaxnreg), so that the number holds two barriers
// precision  exact       limits  block a multiple of 32; mbarrier_pingpong 64 threads; register_pool 128
// cost     no memory traffic but the counter, the fences' stores
#include "record.cuh"

namespace microbench {

constexpr int kRepeats = 8;

template <class Wait>
TK_DEVICE void run_barrier(Record* records, u32* sink, u32 iterations, Wait wait_once) {
  u32 passed = 0;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n)
#pragma unroll
    for (int i = 0; i < kRepeats; ++i) {
      wait_once();
      ++passed;
    }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, passed);
}

MICROBENCH(1024) sync_threads(Record* records, u32* sink, u32 iterations) {
  run_barrier(records, sink, iterations, [] { __syncthreads(); });
}
MICROBENCH(1024) sync_named(Record* records, u32* sink, u32 iterations) {
  run_barrier(records, sink, iterations, [] { sync(1, static_cast<int>(blockDim.x)); });
}

MICROBENCH(1024) mbarrier_all(Record* records, u32* sink, u32 iterations) {
  __shared__ mbarrier bar;
  if (threadIdx.x == 0) {
    init(bar, blockDim.x);
    publish_barriers();
  }
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
    arrive(bar);
    wait(bar, n % 2);
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, iterations);
}

// Warp 0 writes a number and rings, warp 1 adds one and rings back.
MICROBENCH(64) mbarrier_pingpong(Record* records, u32* sink, u32 iterations) {
  __shared__ mbarrier there, back;
  __shared__ u32 ball[32];
  if (threadIdx.x == 0) {
    init(there, 32);
    init(back, 32);
    publish_barriers();
  }
  const int lane = lane_index();
  if (warp_index() == 0) ball[lane] = 0;
  const Stopwatch begin = start();
  if (warp_index() == 0) {
#pragma unroll 1
    for (u32 n = 0; n < iterations; ++n) {
      ball[lane] += 1;
      arrive(there);
      wait(back, n % 2);
    }
  } else {
#pragma unroll 1
    for (u32 n = 0; n < iterations; ++n) {
      wait(there, n % 2);
      ball[lane] += 1;
      arrive(back);
    }
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, ball[lane]);
}

MICROBENCH(1024) cluster_barrier(Record* records, u32* sink, u32 iterations) {
  cluster_sync();
  run_barrier(records, sink, iterations, [] { cluster_sync(); });
}
MICROBENCH(1024) cluster_barrier_relaxed(Record* records, u32* sink, u32 iterations) {
  cluster_sync();
  run_barrier(records, sink, iterations, [] {
    ptx::cluster_arrive_relaxed();
    ptx::cluster_wait();
  });
}

// The counter only grows: barrier n is passed when it reaches (n + 1) times the CTAs.
MICROBENCH(1024) grid_barrier(Record* records, u32* sink, u32* counter, u32 iterations) {
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::red_release_gpu_add(counter, 1);
      while (ptx::load_acquire_gpu(counter) < (n + 1) * gridDim.x) {
      }
    }
    __syncthreads();
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, iterations);
}

template <class Fence>
TK_DEVICE void run_fence(Record* records, u32* sink, u32* words, u32 stores, u32 iterations, Fence fence) {
  u32* mine = words + blockIdx.x * blockDim.x + threadIdx.x;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n)
#pragma unroll
    for (u32 i = 0; i < kRepeats; ++i) {
      if (stores) ptx::store_global_u32(mine, n * kRepeats + i);
      fence();
    }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, iterations * kRepeats);
}

#define FENCE(NAME, CALL)                                                                                  \
  MICROBENCH(1024) fence_##NAME(Record* records, u32* sink, u32* words, u32 stores, u32 iterations) {      \
    run_fence(records, sink, words, stores, iterations, [] { ptx::CALL(); });                              \
  }
FENCE(cta, fence_acq_rel_cta) FENCE(cluster, fence_acq_rel_cluster) FENCE(gpu, fence_acq_rel_gpu)
FENCE(system, fence_acq_rel_sys) FENCE(proxy_async, fence_proxy_async)

extern "C" __global__ void __launch_bounds__(128, 1) register_pool(Record* records, u32* sink, u32 iterations) {
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
    give_registers<40>();
    __syncthreads();
    take_registers<232>();
    __syncthreads();
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, iterations);
}

}  // namespace microbench
