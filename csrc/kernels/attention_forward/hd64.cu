// The kernels of head dimension 64; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_KERNELS(64, 1)
