// The kernel of head dimension 32; forward.cuh describes it.
#include "forward.cuh"

TKPY_ATTENTION_FP8(32, 0)
