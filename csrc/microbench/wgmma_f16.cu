// wgmma with fp16 sums: see wgmma.cuh for the loop, and for precision, limits and cost.
#include "wgmma.cuh"

namespace microbench {
WGMMA_ALL(f16_f16)
WGMMA_ALL(e4m3_f16)
WGMMA_ALL(e5m2_f16)
}  // namespace microbench
