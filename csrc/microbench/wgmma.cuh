// wgmma: what one costs when each waits for the one before, and how fast a stream of them flows.
// D[64, N] += A[64, K] B[N, K]^T on each warpgroup, K-major tiles of 128 bytes (four k-steps), 128-byte swizzle
// in   a [64 rows, 128 bytes], b [N rows, 128 bytes]; every warpgroup uses the same tiles
// out  records[ctas], sink[threads] = the thread's accumulators, summed (f32, s32; fp16 pairs: both halves as f32)
//      D = A0 B0^T (1 + singles) + A B^T groups, where A0, B0 are the first k-step: one product before the clock starts
// loop 1  singles times  fence, one wgmma, commit, wait for it      -> latency
// loop 2  groups times   fence, four wgmmas, commit, wait for the group before     -> rate
// kernels  wgmma_<type>_n<N>_<ss|rs>: A from shared memory or from registers
// precision  that of the type       limits  block 128 or 256, dynamic shared memory 128 (64 + N) bytes
// cost     2 * 64 * N * K flops a wgmma and warpgroup, K = 32 bytes of the type
#pragma once

#include "record.cuh"
#include "tk/ptx_wgmma.cuh"

namespace microbench {

TK_DEVICE void fill_tile(u32 tile, const uint4* rows, int count) {
  for (int chunk = static_cast<int>(threadIdx.x); chunk < count * 8; chunk += static_cast<int>(blockDim.x)) {
    const uint4 v = rows[chunk];
    ptx::store_shared_v4(tile + swizzle_bytes(static_cast<u32>(chunk) * 16, 128), {{v.x, v.y, v.z, v.w}});
  }
}

// The warp's 16 x 32 bytes of k-step `step`: rows g and g + 8, bytes 4t and 16 + 4t (PTX ISA, register fragments).
TK_DEVICE void load_fragment(u32 (&a)[4], const u32* rows, int step) {
  const int lane = lane_index(), row = 16 * (warp_index() % 4) + lane / 4, word = 8 * step + lane % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = rows[(row + 8 * (i % 2)) * 32 + word + 4 * (i / 2)];
}

// A lane has N / 2 accumulators of 32 bits, or N / 4 pairs of fp16.
template <int Count>
TK_DEVICE u32 sum(const float (&d)[Count]) {
  float total = 0;
#pragma unroll
  for (const float x : d) total += x;
  return __float_as_uint(total);
}
template <int Count>
TK_DEVICE u32 sum(const int (&d)[Count]) {
  int total = 0;
#pragma unroll
  for (const int x : d) total += x;
  return static_cast<u32>(total);
}
template <int Count>
TK_DEVICE u32 sum(const u32 (&d)[Count]) {
  float total = 0;
#pragma unroll
  for (const u32 x : d) total += ptx::low<fp16>(x) + ptx::high<fp16>(x);
  return __float_as_uint(total);
}

// multiply(d, A of the step: descriptor or fragment, descriptor of B, step) issues one product.
template <class D, int N, bool InRegisters, class Multiply>
TK_DEVICE void run_wgmma(Record* records, u32* sink, const uint4* a, const uint4* b, u32 singles, u32 groups,
                         Multiply multiply) {
  extern __shared__ __align__(1024) char shared[];
  const u32 a_tile = ptx::shared_address(shared), b_tile = a_tile + 64 * 128;
  fill_tile(a_tile, a, 64);
  fill_tile(b_tile, b, N);
  ptx::fence_proxy_async();
  u32 fragment[4][4];
  if constexpr (InRegisters)
#pragma unroll
    for (int step = 0; step < 4; ++step) load_fragment(fragment[step], reinterpret_cast<const u32*>(a), step);
  __syncthreads();

  typename element<D>::word d[is_same<D, fp16> ? N / 4 : N / 2] = {};
  const u64 a_first = tile_descriptor(a_tile, Major::k, 64, 128, 0);
  const u64 b_first = tile_descriptor(b_tile, Major::k, N, 128, 0);
  const auto product = [&](u64 step) {
    if constexpr (InRegisters)
      multiply(d, fragment[step], b_first, step);
    else  // one panel: a k-step is 32 bytes further along
      multiply(d, a_first + encode_offset(32) * step, b_first, step);
  };
  ptx::wgmma_fence();
  product(0);  // the accumulators are in place before the clock starts
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();

  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < singles; ++n) {
    ptx::wgmma_fence();
    product(0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
  }
#pragma unroll 1
  for (u32 n = 0; n < groups; ++n) {
    ptx::wgmma_fence();
#pragma unroll
    for (u64 step = 0; step < 4; ++step) product(step);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<1>();
  }
  ptx::wgmma_wait_group<0>();
  const Stopwatch end = stop();
  finish(records, sink, begin, end, sum(d));
}

template <class D, class T>
struct Dense {
  using Form = ptx::wgmma_form<D, T, T>;
  template <int Count>
  TK_DEVICE void operator()(typename element<D>::word (&d)[Count], const u32 (&a)[4], u64 b, u64 step) const {
    ptx::wgmma<Form, 0>(d, a, b + encode_offset(32) * step, 1);
  }
  template <int Count>
  TK_DEVICE void operator()(typename element<D>::word (&d)[Count], u64 a, u64 b, u64 step) const {
    ptx::wgmma<Form, 0, 0>(d, a, b + encode_offset(32) * step, 1);
  }
};

#define WGMMA(NAME, D, T, N) KERNEL(NAME, D, T, N, ss, false) KERNEL(NAME, D, T, N, rs, true)
#define KERNEL(NAME, D, T, N, SOURCE, IN_REGISTERS)                                                                  \
  MICROBENCH(256) wgmma_##NAME##_n##N##_##SOURCE(Record* records, u32* sink, const uint4* a, const uint4* b,         \
                                                 u32 singles, u32 groups) {                                          \
    run_wgmma<D, N, IN_REGISTERS>(records, sink, a, b, singles, groups, Dense<D, T>());                              \
  }
#define WGMMA_16(...)                                                                                                \
  WGMMA(__VA_ARGS__, 8) WGMMA(__VA_ARGS__, 16) WGMMA(__VA_ARGS__, 24) WGMMA(__VA_ARGS__, 32) WGMMA(__VA_ARGS__, 48)  \
  WGMMA(__VA_ARGS__, 64) WGMMA(__VA_ARGS__, 80) WGMMA(__VA_ARGS__, 96) WGMMA(__VA_ARGS__, 112)                       \
  WGMMA(__VA_ARGS__, 128) WGMMA(__VA_ARGS__, 144) WGMMA(__VA_ARGS__, 160) WGMMA(__VA_ARGS__, 176)                    \
  WGMMA(__VA_ARGS__, 192) WGMMA(__VA_ARGS__, 208) WGMMA(__VA_ARGS__, 224) WGMMA(__VA_ARGS__, 240)                    \
  WGMMA(__VA_ARGS__, 256)
#define WGMMA_ALL(...)                                                                                               \
  WGMMA_16(__VA_ARGS__) WGMMA(__VA_ARGS__, 40) WGMMA(__VA_ARGS__, 56) WGMMA(__VA_ARGS__, 72)                         \
  WGMMA(__VA_ARGS__, 88) WGMMA(__VA_ARGS__, 104) WGMMA(__VA_ARGS__, 120) WGMMA(__VA_ARGS__, 136)                     \
  WGMMA(__VA_ARGS__, 152) WGMMA(__VA_ARGS__, 168) WGMMA(__VA_ARGS__, 184) WGMMA(__VA_ARGS__, 200)                    \
  WGMMA(__VA_ARGS__, 216) WGMMA(__VA_ARGS__, 232) WGMMA(__VA_ARGS__, 248)

}  // namespace microbench
