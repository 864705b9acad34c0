// The kernels of head dimension 192 for lists of blocks; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_CAPPED_BLOCK_KERNELS(192_blocks, 10)
