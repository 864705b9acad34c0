// The kernels of head dimension 160; backward.cuh describes them.
#include "backward.cuh"

TKPY_ATTENTION_BACKWARD_CAPPED_KERNELS(160, 4)
