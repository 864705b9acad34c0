// The kernels of head dimension 224; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_CAPPED_KERNELS(224, 7)
