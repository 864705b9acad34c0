// Atomics on shared and global memory, by how many threads meet at one address.
// in   words: zeros; lane l of warp w uses word (w * warp_step + l / degree * lane_step) mod count: `degree` lanes of a
//      warp meet at one word; with warp_step 0 all warps of the grid do, too
// out  records[ctas], sink[threads] = the sum of what came back; words (global), out[count] (shared): the sums
// kernels  <atom_add|cas|red_add|red_add_f32>_<shared|global>, red_add_v4_f32_global      iterations * 8 of them
//          atom_latency_<shared|global>: each one's address waits for the result of the one before
// precision  exact (f32: whole numbers)       limits  shared: count * 4 bytes of dynamic shared memory
// cost     iterations * 8 atomics a thread
#include "record.cuh"

namespace microbench {

constexpr int kRepeats = 8;
extern __shared__ __align__(1024) u32 shared_words[];

struct Pattern {
  u32 count, warp_step, lane_step, degree;
  TK_DEVICE u32 word(u32 warp) const { return (warp * warp_step + threadIdx.x % 32 / degree * lane_step) % count; }
};

// once(address, value, expected) does one; 1 or 1.0f is what it adds.
template <class Address, class Once>
TK_DEVICE u32 repeat(Address at, u32 iterations, u32 one, Once once) {
  u32 total = 0;
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n)
#pragma unroll
    for (int i = 0; i < kRepeats; ++i) total += once(at, one, n);
  return total;
}

template <class Once>
TK_DEVICE void run_global(Record* records, u32* sink, u32* words, Pattern pattern, u32 one, u32 iterations, Once once) {
  u32* at = words + pattern.word(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  const Stopwatch begin = start();
  const u32 total = repeat(at, iterations, one, once);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, total);
}

template <class Once>
TK_DEVICE void run_shared(Record* records, u32* sink, u32* out, Pattern pattern, u32 one, u32 iterations, Once once) {
  for (u32 i = threadIdx.x; i < pattern.count; i += blockDim.x) shared_words[i] = 0;
  const u32 at = ptx::shared_address(shared_words) + 4 * pattern.word(threadIdx.x / 32);
  const Stopwatch begin = start();
  const u32 total = repeat(at, iterations, one, once);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, total);
  for (u32 i = threadIdx.x; i < pattern.count; i += blockDim.x) out[blockIdx.x * pattern.count + i] = shared_words[i];
}

#define ATOMIC(NAME, SPACE, ...)                                                                                       \
  MICROBENCH(1024) NAME##_##SPACE(Record* records, u32* sink, u32* words, Pattern pattern, u32 one, u32 iterations) { \
    run_##SPACE(records, sink, words, pattern, one, iterations,                                                       \
                [](auto at, u32 one, u32 n) -> u32 __VA_ARGS__);                                                      \
  }
#define ATOMICS(SPACE)                                                                      \
  ATOMIC(atom_add, SPACE, { return ptx::atom_add_##SPACE(at, one); })                       \
  ATOMIC(cas, SPACE, { return ptx::atom_cas_##SPACE(at, n, n + one); })                     \
  ATOMIC(red_add, SPACE, {                                                                  \
    ptx::red_add_##SPACE(at, one);                                                          \
    return 1;                                                                               \
  })                                                                                        \
  ATOMIC(red_add_f32, SPACE, {                                                              \
    ptx::red_add_f32_##SPACE(at, __uint_as_float(one));                                     \
    return 1;                                                                               \
  })
ATOMICS(global) ATOMICS(shared)
ATOMIC(red_add_v4_f32, global, {
  ptx::red_add_v4_f32_global(at, __uint_as_float(one));
  return 1;
})

// What comes back is at most 2^31: its sign bit, always 0, goes into the next address.
MICROBENCH(32) atom_latency_global(Record* records, u32* sink, u32* words, u32 iterations) {
  u32 old = 0;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n)
#pragma unroll
    for (int i = 0; i < kRepeats; ++i) old = ptx::atom_add_global(words + threadIdx.x + (old >> 31), 1);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, old);
}
MICROBENCH(32) atom_latency_shared(Record* records, u32* sink, u32 iterations) {
  shared_words[threadIdx.x] = 0;
  const u32 at = ptx::shared_address(shared_words + threadIdx.x);
  u32 old = 0;
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n)
#pragma unroll
    for (int i = 0; i < kRepeats; ++i) old = ptx::atom_add_shared(at + (old >> 31), 1);
  const Stopwatch end = stop();
  finish(records, sink, begin, end, old);
}

}  // namespace microbench
