// The kernels of head dimension 32; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_KERNELS(32, 0)
