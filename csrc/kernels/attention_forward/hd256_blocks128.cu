// The kernels of head dimension 256 for lists of blocks of 128; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_BLOCK_KERNELS(256_blocks128, 8)
