// The kernels of head dimension 256 for lists of blocks; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_BLOCK_KERNELS(256_blocks, 12)
