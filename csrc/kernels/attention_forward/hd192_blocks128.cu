// The kernels of head dimension 192, values of up to 128 or 192, for lists of blocks of 128; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_CAPPED_BLOCK_KERNELS(192x128_blocks128, 5)
TKPY_ATTENTION_CAPPED_BLOCK_KERNELS(192_blocks128, 6)
