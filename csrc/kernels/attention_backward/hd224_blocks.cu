// The kernels of head dimension 224 for lists of blocks; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_CAPPED_BLOCK_KERNELS(224_blocks, 11)
