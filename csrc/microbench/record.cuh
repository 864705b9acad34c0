// What every microbenchmark leaves behind. A kernel takes its iteration counts as parameters, times one loop with
// start() and stop(), and ends with finish(): one Record a CTA, and one word a thread that depends on everything the
// loop computed, so that nothing can be optimised away and the emulator can check the result.
#pragma once

#include "tk/ptx_micro.cuh"
#include "tk/sync.cuh"

namespace microbench {

using namespace tk;

struct Record {
  u64 clocks[2];  // of the SM: before and after the loop
  u64 times[2];   // nanoseconds, comparable between SMs
  u64 sm;
};

// Between the barriers lies the loop of the slowest warp of the CTA.
struct Stopwatch {
  u64 clock, time;
};
TK_DEVICE Stopwatch start() {
  __syncthreads();
  return {ptx::clock64(), ptx::globaltimer()};
}
TK_DEVICE Stopwatch stop() {
  __syncthreads();
  return {ptx::clock64(), ptx::globaltimer()};
}

TK_DEVICE void finish(Record* records, Stopwatch begin, Stopwatch end) {
  if (threadIdx.x) return;
  Record& r = records[blockIdx.x];
  r.clocks[0] = begin.clock, r.clocks[1] = end.clock;
  r.times[0] = begin.time, r.times[1] = end.time;
  r.sm = ptx::smid();
}
TK_DEVICE void finish(Record* records, u32* sink, Stopwatch begin, Stopwatch end, u32 checksum) {
  finish(records, begin, end);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = checksum;
}

TK_DEVICE u32 mix(const ptx::quad& v) { return v.x[0] ^ v.x[1] ^ v.x[2] ^ v.x[3]; }

}  // namespace microbench

#define MICROBENCH(threads) extern "C" __global__ void __launch_bounds__(threads)
