// The kernels of head dimension 192, values of up to 128 or 192, for lists of blocks of 64; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_CAPPED_BLOCK_KERNELS(192x128_blocks64, 14)
TKPY_ATTENTION_CAPPED_BLOCK_KERNELS(192_blocks64, 15)
