// The kernels of head dimension 32 for lists of blocks of 64; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_BLOCK_KERNELS(32_blocks64, 9)
