// The kernels of head dimension 192; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_KERNELS(192, 6)
