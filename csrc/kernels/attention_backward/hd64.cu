// The kernels of head dimension 64; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_KERNELS(64, 1)
