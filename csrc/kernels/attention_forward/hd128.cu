// The kernels of head dimension 128; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_KERNELS(128, 3)
