// The kernels of head dimension 160; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_CAPPED_KERNELS(160, 4)
