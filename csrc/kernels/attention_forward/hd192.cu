// The kernels of head dimension 192, values of up to 128 or 192; forward.cuh describes them.
#include "forward.cuh"

TKPY_ATTENTION_KERNELS(192x128, 5)
TKPY_ATTENTION_CAPPED_KERNELS(192, 6)
