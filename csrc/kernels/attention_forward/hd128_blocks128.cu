// The kernels of head dimension 128 for lists of blocks of 128; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_BLOCK_KERNELS(128_blocks128, 3)
