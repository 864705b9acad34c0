// The kernels of head dimension 96; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_KERNELS(96, 2)
