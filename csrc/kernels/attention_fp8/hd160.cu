// The kernel of head dimension 160; forward.cuh describes it.
#include "forward.cuh"

TKPY_ATTENTION_FP8(160, 4)
