// The kernels of head dimension 32 for lists of blocks of 128; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_CAPPED_BLOCK_KERNELS(32_blocks128, 0)
