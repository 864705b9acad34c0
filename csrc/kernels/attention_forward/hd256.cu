// The kernels of head dimension 256; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_KERNELS(256, 8)
