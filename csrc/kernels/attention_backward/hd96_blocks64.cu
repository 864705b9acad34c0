// The kernels of head dimension 96 for lists of blocks of 64; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_CAPPED_BLOCK_KERNELS(96_blocks64, 5)
