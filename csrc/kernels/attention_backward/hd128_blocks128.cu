// The kernels of head dimension 128 for lists of blocks of 128; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_BLOCK_KERNELS(128_blocks128, 6)
