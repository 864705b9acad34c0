// The kernels of head dimension 192 for values of up to 128; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_CAPPED_KERNELS(192x128, 5)
