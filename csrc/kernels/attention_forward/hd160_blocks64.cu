// The kernels of head dimension 160 for lists of blocks of 64; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_CAPPED_BLOCK_KERNELS(160_blocks64, 13)
