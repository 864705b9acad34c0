// The kernels of head dimension 96; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_KERNELS(96, 2)
