// The kernels of head dimension 192, with values of 128 columns or as many; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_FP8(192x128, 5)
TKPY_ATTENTION_FP8(192, 6)
