// wgmma with 16-bit operands and fp32 sums: see wgmma.cuh for the loop, and for precision, limits and cost.
#include "wgmma.cuh"

namespace microbench {
WGMMA_ALL(bf16, float, bf16)
WGMMA_ALL(f16, float, fp16)
}  // namespace microbench
