// Global memory: latency by pointer chase (L1, L2 near and far, HBM), bandwidth of L1, L2 and HBM.
// in   chain: 64-bit addresses, each that of the next; data, from, to: 16-byte aligned buffers of `bytes`
// out  records[ctas], sink[threads] = the last address (low word), or all that was read, added up
// kernels  chase_ca, chase_cg   iterations * 8 dependent loads, through L1 or past it; `warm` untimed hops go before
//          chase_each           the clocks of every single hop past L1, in hops[iterations]
//          read_ca              laps over a part of `bytes` that each CTA has for itself: L1
//          read, write, copy    laps over all of `bytes` by the whole grid, past L1: L2 or HBM, as the footprint says
// limits   chase: one thread a CTA; read, write, copy: bytes a multiple of 16 * 4 * threads of the grid
// precision  exact       cost  8 bytes a hop (a 32-byte sector); bytes a lap, copy twice
#include "record.cuh"

namespace microbench {

constexpr int kHops = 8, kVectors = 4;

template <class Load>
TK_DEVICE void run_chase(Record* records, u32* sink, const void* chain, u32 warm, u32 iterations, Load load) {
  const void* at = chain;
#pragma unroll 1
  for (u32 n = 0; n < warm; ++n) at = load(at);
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n)
#pragma unroll
    for (int i = 0; i < kHops; ++i) at = load(at);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, static_cast<u32>(reinterpret_cast<u64>(at)));
}

MICROBENCH(32) chase_ca(Record* records, u32* sink, const void* chain, u32 warm, u32 iterations) {
  run_chase(records, sink, chain, warm, iterations,
            [](const void* at) { return reinterpret_cast<const void*>(ptx::load_ca_u64(at)); });
}
MICROBENCH(32) chase_cg(Record* records, u32* sink, const void* chain, u32 warm, u32 iterations) {
  run_chase(records, sink, chain, warm, iterations,
            [](const void* at) { return reinterpret_cast<const void*>(ptx::load_cg_u64(at)); });
}

// The second clock is read once the load's result is there.
MICROBENCH(32) chase_each(Record* records, u32* sink, const void* chain, u64* hops, u32 warm, u32 iterations) {
  const void* at = chain;
#pragma unroll 1
  for (u32 n = 0; n < warm; ++n) at = reinterpret_cast<const void*>(ptx::load_cg_u64(at));
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
    const u64 before = ptx::clock64();
    const u64 next = ptx::load_cg_u64(at);
    const u64 after = ptx::clock64_after(next);
    at = reinterpret_cast<const void*>(next);
    hops[n] = after - before;
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, static_cast<u32>(reinterpret_cast<u64>(at)));
}

TK_DEVICE u32 add_up(const ptx::quad (&v)[kVectors]) {
  u32 total = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) total += v[i].x[0] + v[i].x[1] + v[i].x[2] + v[i].x[3];
  return total;
}

MICROBENCH(1024) read_ca(Record* records, u32* sink, const uint4* data, u32 bytes, u32 laps) {
  const uint4* mine = data + static_cast<u64>(blockIdx.x) * (bytes / 16) + threadIdx.x;
  const u32 step = kVectors * blockDim.x, count = bytes / 16;
  u32 total = 0;
  for (u32 i = 0; i < count; i += blockDim.x) total += mix(ptx::load_ca_v4(mine + i));  // into L1
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 lap = 0; lap < laps; ++lap)
#pragma unroll 1
    for (u32 first = 0; first < count; first += step) {
      ptx::quad v[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i) v[i] = ptx::load_ca_v4(mine + first + i * blockDim.x);
      total += add_up(v);
    }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, total);
}

// Vectors of a grid stride: neighbouring threads take neighbouring vectors.
template <class Each>
TK_DEVICE Stopwatch stream(u64 bytes, u32 laps, Each each) {
  const u64 threads = static_cast<u64>(gridDim.x) * blockDim.x, count = bytes / 16;
  const u64 thread = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 lap = 0; lap < laps; ++lap)
#pragma unroll 1
    for (u64 first = thread; first < count; first += kVectors * threads) each(first, threads);
  return begin;
}

MICROBENCH(1024) read(Record* records, u32* sink, const uint4* from, u64 bytes, u32 laps) {
  u32 total = 0;
  const Stopwatch begin = stream(bytes, laps, [&](u64 first, u64 threads) {
    ptx::quad v[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) v[i] = ptx::load_cg_v4(from + first + i * threads);
    total += add_up(v);
  });
  finish(records, sink, begin, stop(), total);
}

MICROBENCH(1024) write(Record* records, u32* sink, uint4* to, u64 bytes, u32 laps) {
  const Stopwatch begin = stream(bytes, laps, [&](u64 first, u64 threads) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const u32 v = static_cast<u32>(first + i * threads);
      ptx::store_global_v4(to + first + i * threads, {{v, v, v, v}});
    }
  });
  finish(records, sink, begin, stop(), laps);
}

MICROBENCH(1024) copy(Record* records, u32* sink, uint4* to, const uint4* from, u64 bytes, u32 laps) {
  const Stopwatch begin = stream(bytes, laps, [&](u64 first, u64 threads) {
    ptx::quad v[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) v[i] = ptx::load_cg_v4(from + first + i * threads);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) ptx::store_global_v4(to + first + i * threads, v[i]);
  });
  finish(records, sink, begin, stop(), laps);
}

}  // namespace microbench
