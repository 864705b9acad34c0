// wgmma with fp8 operands and fp32 sums: see wgmma.cuh for the loop, and for precision, limits and cost.
#include "wgmma.cuh"

namespace microbench {
WGMMA_ALL(e4m3, float, e4m3)
WGMMA_ALL(e5m2, float, e5m2)
}  // namespace microbench
