// The kernels of head dimension 96 for lists of blocks of 64; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_BLOCK_KERNELS(96_blocks64, 11)
