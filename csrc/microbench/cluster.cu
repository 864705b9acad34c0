// Distributed shared memory: latency and bandwidth between the CTAs of a cluster (one dimension), by its size.
// in   distance: CTA r reads from, or sends to, CTA (r + distance) mod ctas; 0 is its own shared memory by the same way
// out  records[ctas], sink[threads] = where the chase ended, or what was read or received, added up
// kernels  cluster_chase   iterations * 16 dependent loads of 4 bytes; only CTAs with rank < active chase, the others wait
//          cluster_read    laps over the peer's `bytes`, 16 bytes a thread       cluster_write   the same with stores
//          cluster_send    iterations bulk copies of `bytes`, two in flight
//            full[slot]  1 arrival + bytes, waited by the receiver      free[slot]  1 arrival by the receiver
// limits   dynamic shared memory: bytes, cluster_send 3 * bytes; bytes a multiple of 64 * threads
// precision  exact       cost  4 bytes a hop; bytes a lap, or a copy, and CTA
#include "record.cuh"

namespace microbench {

constexpr int kHops = 16, kVectors = 4;
extern __shared__ __align__(1024) u32 words[];

TK_DEVICE u32 peer_of(u32 distance, u32 ctas) { return (ptx::cluster_rank() + distance) % ctas; }

// Word i of CTA r is i + r + 1.
TK_DEVICE void fill_words(u32 bytes) {
  for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) words[i] = i + ptx::cluster_rank() + 1;
}

// Every word holds the cluster-wide address of the word `stride` bytes further in its own CTA.
MICROBENCH(1024) cluster_chase(Record* records, u32* sink, u32 bytes, u32 stride, u32 distance, u32 ctas, u32 active,
                               u32 iterations) {
  const u32 own = ptx::mapa(ptx::shared_address(words), ptx::cluster_rank());
  for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) words[i] = own + (4 * i + stride) % bytes;
  const u32 base = ptx::mapa(ptx::shared_address(words), peer_of(distance, ctas));
  u32 at = base + 4 * threadIdx.x;
  cluster_sync();
  const u32 chases = ptx::cluster_rank() < active ? iterations : 0;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < chases; ++n)
#pragma unroll
    for (int i = 0; i < kHops; ++i) at = ptx::load_cluster_u32(at);
  const Stopwatch end = stop();
  cluster_sync();
  finish(records, sink, begin, end, at - base);
}

MICROBENCH(1024) cluster_read(Record* records, u32* sink, u32 bytes, u32 distance, u32 ctas, u32 laps) {
  fill_words(bytes);
  const u32 base = ptx::mapa(ptx::shared_address(words), peer_of(distance, ctas)) + 16 * threadIdx.x;
  const u32 step = 16 * blockDim.x;
  u32 total = 0;
  cluster_sync();
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 lap = 0; lap < laps; ++lap)
#pragma unroll 1
    for (u32 first = 0; first < bytes; first += kVectors * step) {
      ptx::quad v[kVectors];
#pragma unroll
      for (u32 i = 0; i < kVectors; ++i) v[i] = ptx::load_cluster_v4(base + first + i * step);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) total += v[i].x[0] + v[i].x[1] + v[i].x[2] + v[i].x[3];
    }
  const Stopwatch end = stop();
  cluster_sync();
  finish(records, sink, begin, end, total);
}

MICROBENCH(1024) cluster_write(Record* records, u32* sink, u32 bytes, u32 distance, u32 ctas, u32 laps) {
  const u32 base = ptx::mapa(ptx::shared_address(words), peer_of(distance, ctas)) + 16 * threadIdx.x;
  const u32 step = 16 * blockDim.x, v = ptx::cluster_rank() + 1 + threadIdx.x;
  cluster_sync();
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 lap = 0; lap < laps; ++lap)
#pragma unroll 1
    for (u32 first = 0; first < bytes; first += kVectors * step)
#pragma unroll
      for (u32 i = 0; i < kVectors; ++i) ptx::store_cluster_v4(base + first + i * step, {{v, v, v, v}});
  cluster_sync();  // within the clock: until then the stores may be under way
  const Stopwatch end = stop();
  u32 total = 0;
  for (u32 i = 4 * threadIdx.x; i < bytes / 4; i += 4 * blockDim.x) total += words[i] + words[i + 3];
  finish(records, sink, begin, end, total);
}

MICROBENCH(128) cluster_send(Record* records, u32* sink, u32 bytes, u32 distance, u32 ctas, u32 iterations) {
  constexpr u32 kSlots = 2;
  __shared__ mbarrier full[kSlots], free[kSlots];
  fill_words(bytes);  // what is sent; the two slots that receive lie behind it
  ptx::fence_proxy_async();
  if (threadIdx.x == 0) {
    for (u32 s = 0; s < kSlots; ++s) {
      init(full[s], 1);
      init(free[s], 1);
    }
    publish_barriers();
  }
  cluster_sync();
  const Stopwatch begin = start();
  if (threadIdx.x == 0) {
    const u32 to = peer_of(distance, ctas), from = peer_of(ctas - distance, ctas), base = ptx::shared_address(words);
#pragma unroll 1
    for (u32 n = 0; n < iterations + 1; ++n) {
      if (n < iterations) {
        const u32 slot = n % kSlots;
        arrive_expect(full[slot], bytes);
        wait_cluster(free[slot], n / kSlots % 2 ^ 1);  // the peer has taken what was sent into this slot before
        ptx::bulk_send(ptx::mapa(base + (1 + slot) * bytes, to), base, bytes, ptx::mapa(full[slot].address(), to));
      }
      if (n > 0) {  // one behind: turn n - 1 has come
        const u32 slot = (n - 1) % kSlots;
        wait_cluster(full[slot], (n - 1) / kSlots % 2);
        arrive_at(free[slot], from);
      }
    }
  }
  const Stopwatch end = stop();
  cluster_sync();
  u32 total = 0;
  for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) total += words[bytes / 4 + i];
  finish(records, sink, begin, end, total);
}

}  // namespace microbench
