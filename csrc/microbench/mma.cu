// mma.sync, for comparison with wgmma: latency of a chain on one accumulator, rate of eight accumulators a warp.
// in   a [lane][4], b [lane][2] registers of the fragments, the same for every warp; zero: 0, which the compiler must
//      not know: where a type has no instruction of its own (fp8), ptxas would take the product out of the loop
// out  records[ctas], sink[threads] = the thread's accumulators, xor-ed. Product i of an iteration takes the registers of
//      a turned by i % 4 and those of b by i / 4, so that no two are the same.
// kernels  mma_<type>_latency: iterations * 8 products on one accumulator; mma_<type>_rate: iterations on each of eight
// precision  that of the type       limits  threads a multiple of 32, at most 512
// cost     2 * 16 * 8 * K flops a product, K = 32 bytes of the type
#include "record.cuh"
#include "tk/ptx_mma.cuh"

namespace microbench {

constexpr int kProducts = 8;

TK_DEVICE u32 bits(float x) { return __float_as_uint(x); }
TK_DEVICE u32 bits(int x) { return static_cast<u32>(x); }
TK_DEVICE u32 bits(u32 x) { return x; }

template <class D, class T, int Chains>
TK_DEVICE void run(Record* records, u32* sink, const u32* a_words, const u32* b_words, u32 zero, u32 iterations) {
  using Form = ptx::mma_form<D, T, T>;
  constexpr int count = is_same<D, fp16> ? 2 : 4;
  typename element<D>::word d[Chains][count] = {};
  u32 a[4], b[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = a_words[lane_index() * 4 + i];
#pragma unroll
  for (int i = 0; i < 2; ++i) b[i] = b_words[lane_index() * 2 + i];
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
#pragma unroll
    for (int i = 0; i < kProducts; ++i)
      ptx::mma<Form>(d[i % Chains], {a[i % 4], a[(i + 1) % 4], a[(i + 2) % 4], a[(i + 3) % 4]}, b[i / 4], b[1 - i / 4]);
#pragma unroll
    for (u32& word : a) word += zero;
  }
  const Stopwatch end = stop();
  u32 checksum = 0;
#pragma unroll
  for (int c = 0; c < Chains; ++c)
#pragma unroll
    for (int i = 0; i < count; ++i) checksum ^= bits(d[c][i]) + static_cast<u32>(c);
  finish(records, sink, begin, end, checksum);
}

#define MMA(NAME, D, T) KERNEL(NAME, D, T, latency, 1) KERNEL(NAME, D, T, rate, kProducts)
#define KERNEL(NAME, D, T, WHAT, CHAINS)                                                                     \
  MICROBENCH(512) mma_##NAME##_##WHAT(Record* records, u32* sink, const u32* a, const u32* b, u32 zero,      \
                                      u32 iterations) {                                                      \
    run<D, T, CHAINS>(records, sink, a, b, zero, iterations);                                                \
  }

MMA(bf16, float, bf16) MMA(f16, float, fp16) MMA(f16_f16, fp16, fp16) MMA(tf32, float, tf32) MMA(e4m3, float, e4m3)
MMA(s8, int, int8)

}  // namespace microbench
