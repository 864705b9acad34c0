// The kernels of head dimension 224; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_CAPPED_KERNELS(224, 7)
