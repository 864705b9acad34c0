// The kernels of head dimension 64 for lists of blocks of 128; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_BLOCK_KERNELS(64_blocks128, 2)
