// How the kernels are entered, and for which plans: what the files that instantiate them have in common.
#pragma once

// Last the bounds: threads of a CTA, and how many of these a multiprocessor must hold.
#define TKPY_ENTRY(NAME, PARAMS, CALL, ...)                                 \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__)                 \
      NAME(const __grid_constant__ tkpy::fft_conv::PARAMS p) {              \
    extern __shared__ __align__(1024) unsigned char memory[];               \
    tkpy::fft_conv::CALL;                                                   \
  }
// KERNEL(points, index of the plan): of rows that a CTA holds, of the inner rows of longer ones, of an eighth of those that
// a cluster holds.
#define TKPY_EVERY_PLAN(KERNEL) \
  KERNEL(256, 0) KERNEL(1024, 1) KERNEL(2048, 2) KERNEL(4096, 3) KERNEL(8192, 4) KERNEL(16384, 5)
#define TKPY_EVERY_INNER(KERNEL) KERNEL(2048, 2) KERNEL(4096, 3) KERNEL(16384, 5)
#define TKPY_EVERY_CLUSTERED(KERNEL) KERNEL(4096, 3) KERNEL(8192, 4)
#define TKPY_PLAN_THREADS(INDEX) tkpy::fft_conv::kPlans[INDEX].threads()
#define TKPY_OUTER_THREADS 32 * tkpy::fft_conv::kOuterWarps
