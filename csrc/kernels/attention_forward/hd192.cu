// The kernels of head dimension 192x128; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_KERNELS(192x128, 2)
