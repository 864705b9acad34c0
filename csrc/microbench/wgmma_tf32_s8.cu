// wgmma with tf32, and with s8 operands and s32 sums: see wgmma.cuh for the loop, and for precision, limits and cost.
#include "wgmma.cuh"

namespace microbench {
WGMMA_ALL(tf32, float, tf32)
WGMMA_16(s8, int, int8)
}  // namespace microbench
