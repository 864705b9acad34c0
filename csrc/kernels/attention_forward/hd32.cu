// The kernels of head dimension 32; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_KERNELS(32, 0)
