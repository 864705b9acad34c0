// What one instruction costs on one SM: latency of a dependent chain, rate of eight independent chains a thread.
// in   x0 [threads] first operand of each thread, b and c the operands that do not change; chain i starts at x0 + i
// out  records[ctas], sink[ctas * threads] = the last value of chain 0, plus how many of the others ended at `never`,
//      which none does: the compiler does not know that, and the word stays comparable where results are approximate
// kernels  <unit>_latency  one chain: iterations * 32 instructions, each waiting for the one before
//          <unit>_rate     eight chains: iterations * 32 instructions on each, interleaved
// precision  that of the instruction       limits  threads a multiple of 32, at most 1024
// cost     256 (32) instructions an iteration and warp, one branch
#include "record.cuh"

namespace microbench {

constexpr int kUnroll = 32;

template <class Unit, int Chains>
TK_DEVICE void run(Record* records, u32* sink, const u32* x0, u32 b, u32 c, u32 never, u32 iterations) {
  u32 x[Chains], before[Chains];
#pragma unroll
  for (int i = 0; i < Chains; ++i) {
    x[i] = x0[threadIdx.x] + static_cast<u32>(i);
    before[i] = b;
    ptx::hold(x[i]);
  }
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int i = 0; i < Chains; ++i) {
        const u32 next = Unit::run(x[i], before[i], b, c);
        before[i] = x[i];
        x[i] = next;
      }
  }
  const Stopwatch end = stop();
  u32 checksum = x[0];
#pragma unroll
  for (int i = 1; i < Chains; ++i) checksum += x[i] == never;
  finish(records, sink, begin, end, checksum);
}

#define ALU(UNIT) KERNEL(UNIT, latency, 1) KERNEL(UNIT, rate, 8)
#define KERNEL(UNIT, WHAT, CHAINS)                                                                                  \
  MICROBENCH(1024) UNIT##_##WHAT(Record* records, u32* sink, const u32* x0, u32 b, u32 c, u32 never, u32 iterations) { \
    run<ptx::unit::UNIT, CHAINS>(records, sink, x0, b, c, never, iterations);                                       \
  }

ALU(fadd) ALU(fmul) ALU(ffma) ALU(fmax) ALU(hfma2) ALU(bfma2)
ALU(ex2) ALU(ex2_f16x2) ALU(lg2) ALU(rcp) ALU(rsqrt) ALU(sqrt) ALU(sin) ALU(tanh) ALU(tanh_f16x2)
ALU(cvt_bf16x2_f32) ALU(cvt_f16x2_f32) ALU(cvt_f32_f16) ALU(cvt_e4m3x2_f32) ALU(cvt_f16x2_e4m3x2)
ALU(cvt_f32_s32) ALU(cvt_s32_f32)
ALU(iadd) ALU(imad) ALU(lop3) ALU(shf) ALU(viaddmax) ALU(prmt) ALU(popc) ALU(dp4a)
ALU(shfl) ALU(redux) ALU(ballot)

}  // namespace microbench
