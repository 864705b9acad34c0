// Shared memory of one SM: latency by pointer chase, bandwidth by access width and conflict degree, ldmatrix, stmatrix.
// in   stride: bytes between the accesses of neighbouring lanes (rows of a matrix: between rows); it makes the conflicts
// out  records[ctas], sink[threads] = what was read, xor-ed, or where the chase ended
// kernels  shared_chase           iterations * 16 loads of 4 bytes, each the address of the next
//          shared_read_<bytes>    iterations * 8 loads of 4, 8 or 16 bytes a lane
//          shared_write_<bytes>   iterations * 8 stores
//          ldmatrix_x<1|2|4>, ldmatrix_x4_trans, stmatrix_x4      iterations * 8 of them
// limits   threads a multiple of 32; `bytes` a power of two of at least 4096, which all addresses wrap into; dynamic
//          shared memory bytes + 1024; zero: 0, which the compiler must not know, or it would move loads out of the loop
// precision  exact       cost  no global traffic within the loop
#include "record.cuh"

namespace microbench {

extern __shared__ __align__(1024) u32 words[];

constexpr int kHops = 16, kAccesses = 8;

TK_DEVICE void fill_words(u32 bytes) {
  for (u32 i = threadIdx.x; i < (bytes + 128 * kAccesses) / 4; i += blockDim.x) words[i] = (i + 1) * 2654435761u;
  __syncthreads();
}

// Every word holds the address of the word `stride` bytes further.
MICROBENCH(1024) shared_chase(Record* records, u32* sink, u32 bytes, u32 stride, u32 iterations) {
  const u32 base = ptx::shared_address(words);
  for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) words[i] = base + (4 * i + stride) % bytes;
  u32 at = base + 4 * threadIdx.x;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n)
#pragma unroll
    for (int i = 0; i < kHops; ++i) at = ptx::load_shared_u32(at);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, at - base);
}

template <int Bytes>
TK_DEVICE u32 read_shared(u32 at) {
  if constexpr (Bytes == 4)
    return ptx::load_shared_u32(at);
  else if constexpr (Bytes == 8)
    return mix(ptx::load_shared_v2(at));
  else
    return mix(ptx::load_shared_v4(at));
}
template <int Bytes>
TK_DEVICE void write_shared(u32 at, u32 v) {
  if constexpr (Bytes == 4)
    ptx::store_shared_u32(at, v);
  else if constexpr (Bytes == 8)
    ptx::store_shared_v2(at, {{v, v}});
  else
    ptx::store_shared_v4(at, {{v, v, v, v}});
}

// Each warp has its own kilobyte to start in. The accesses of one iteration lie 128 bytes apart: all banks once round.
TK_DEVICE u32 lane_address(u32 bytes, u32 stride) {
  return ptx::shared_address(words) + (threadIdx.x / 32 * 1024 + threadIdx.x % 32 * stride) % bytes;
}

template <int Bytes>
TK_DEVICE void run_read(Record* records, u32* sink, u32 bytes, u32 stride, u32 zero, u32 iterations) {
  fill_words(bytes);
  u32 at = lane_address(bytes, stride);
  u32 checksum = 0;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n, at += zero) {
    u32 v[kAccesses];
#pragma unroll
    for (u32 i = 0; i < kAccesses; ++i) v[i] = read_shared<Bytes>(at + 128 * i);
#pragma unroll
    for (int i = 0; i < kAccesses; ++i) checksum += v[i];
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, checksum);
}

template <int Bytes>
TK_DEVICE void run_write(Record* records, u32* sink, u32 bytes, u32 stride, u32 zero, u32 iterations) {
  fill_words(bytes);
  u32 at = lane_address(bytes, stride);
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n, at += zero)
#pragma unroll
    for (u32 i = 0; i < kAccesses; ++i) write_shared<Bytes>(at + 128 * i, stride);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, ptx::load_shared_u32(at));
}

#define SHARED_WIDTH(BYTES)                                                                                   \
  MICROBENCH(1024) shared_read_##BYTES(Record* records, u32* sink, u32 bytes, u32 stride, u32 zero, u32 iterations) {   \
    run_read<BYTES>(records, sink, bytes, stride, zero, iterations);                                                \
  }                                                                                                           \
  MICROBENCH(1024) shared_write_##BYTES(Record* records, u32* sink, u32 bytes, u32 stride, u32 zero, u32 iterations) {  \
    run_write<BYTES>(records, sink, bytes, stride, zero, iterations);                                               \
  }
SHARED_WIDTH(4) SHARED_WIDTH(8) SHARED_WIDTH(16)

// Lane l gives the address of row l; `load` fills up to four registers.
template <class Load>
TK_DEVICE void run_ldmatrix(Record* records, u32* sink, u32 bytes, u32 stride, u32 zero, u32 iterations, Load load) {
  fill_words(bytes);
  u32 at = lane_address(bytes, stride);
  u32 checksum = 0;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n, at += zero) {
    u32 r[kAccesses][4] = {};
#pragma unroll
    for (u32 i = 0; i < kAccesses; ++i) load(r[i], at + 128 * i);
#pragma unroll
    for (int i = 0; i < kAccesses; ++i) checksum += r[i][0] ^ r[i][1] ^ r[i][2] ^ r[i][3];
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, checksum);
}

#define LDMATRIX(NAME)                                                                                   \
  MICROBENCH(1024) NAME(Record* records, u32* sink, u32 bytes, u32 stride, u32 zero, u32 iterations) {             \
    run_ldmatrix(records, sink, bytes, stride, zero, iterations, [](u32(&r)[4], u32 at) { ptx::NAME(r, at); }); \
  }
LDMATRIX(ldmatrix_x1) LDMATRIX(ldmatrix_x2) LDMATRIX(ldmatrix_x4) LDMATRIX(ldmatrix_x4_trans)

MICROBENCH(1024) stmatrix_x4(Record* records, u32* sink, u32 bytes, u32 stride, u32 zero, u32 iterations) {
  fill_words(bytes);
  u32 at = lane_address(bytes, stride);
  const u32 r[4] = {stride, stride, stride, stride};
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n, at += zero)
#pragma unroll
    for (u32 i = 0; i < kAccesses; ++i) ptx::stmatrix_x4(at + 128 * i, r);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, ptx::load_shared_u32(at));
}

}  // namespace microbench
