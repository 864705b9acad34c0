// The kernels of head dimension 256; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_KERNELS(256, 8)
