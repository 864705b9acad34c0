// The kernels of head dimension 64 for lists of blocks of 128; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_BLOCK_KERNELS(64_blocks128, 1)
