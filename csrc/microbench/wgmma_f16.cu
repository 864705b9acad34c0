// wgmma with fp16 sums: see wgmma.cuh for the loop, and for precision, limits and cost.
#include "wgmma.cuh"

namespace microbench {
WGMMA_ALL(f16_f16, fp16, fp16)
WGMMA_ALL(e4m3_f16, fp16, e4m3)
WGMMA_ALL(e5m2_f16, fp16, e5m2)
}  // namespace microbench
