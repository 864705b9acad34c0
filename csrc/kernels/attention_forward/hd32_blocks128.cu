// The kernels of head dimension 32 for lists of blocks of 128; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_BLOCK_KERNELS(32_blocks128, 0)
