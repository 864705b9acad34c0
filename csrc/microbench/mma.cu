// mma.sync, for comparison with wgmma: latency of a chain on one accumulator, rate of eight accumulators a warp.
// in   a [lane][4], b [lane][2] registers of the fragments, the same for every warp; zero: 0, which the compiler must
//      not know: where a type has no instruction of its own (fp8), ptxas would take the product out of the loop
// out  records[ctas], sink[threads] = the thread's accumulators, xor-ed. Product i of an iteration takes the registers of
//      a turned by i % 4 and those of b by i / 4, so that no two are the same.
// kernels  mma_<type>_latency: iterations * 8 products on one accumulator; mma_<type>_rate: iterations on each of eight
// precision  that of the type       limits  threads a multiple of 32, at most 512
// cost     2 * 16 * 8 * K flops a product, K = 32 bytes of the type
#include "record.cuh"

namespace microbench {

constexpr int kProducts = 8;

template <class Mma, int Chains>
TK_DEVICE void run(Record* records, u32* sink, const u32* a_words, const u32* b_words, u32 zero, u32 iterations,
                  Mma mma) {
  u32 a[4], b[2], d[Chains][4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = a_words[lane_index() * 4 + i];
#pragma unroll
  for (int i = 0; i < 2; ++i) b[i] = b_words[lane_index() * 2 + i];
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
#pragma unroll
    for (int i = 0; i < kProducts; ++i)
      mma(d[i % Chains], {a[i % 4], a[(i + 1) % 4], a[(i + 2) % 4], a[(i + 3) % 4]}, {b[i / 4], b[1 - i / 4]});
#pragma unroll
    for (u32& word : a) word += zero;
  }
  const Stopwatch end = stop();
  u32 checksum = 0;
#pragma unroll
  for (int c = 0; c < Chains; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) checksum ^= d[c][i] + static_cast<u32>(c);
  finish(records, sink, begin, end, checksum);
}

#define MMA(TYPE)                                                                                              \
  MICROBENCH(512) mma_##TYPE##_latency(Record* records, u32* sink, const u32* a, const u32* b, u32 zero, \
                                u32 iterations) { \
    run<decltype(&ptx::mma_##TYPE), 1>(records, sink, a, b, zero, iterations, ptx::mma_##TYPE);                      \
  }                                                                                                            \
  MICROBENCH(512) mma_##TYPE##_rate(Record* records, u32* sink, const u32* a, const u32* b, u32 zero, \
                                u32 iterations) {  \
    run<decltype(&ptx::mma_##TYPE), kProducts>(records, sink, a, b, zero, iterations, ptx::mma_##TYPE);              \
  }

MMA(bf16) MMA(f16) MMA(f16_f16) MMA(tf32) MMA(e4m3) MMA(s8)

}  // namespace microbench
