// The kernel of head dimension 96; forward.cuh describes it.
#include "forward.cuh"

TKPY_ATTENTION_FP8(96, 2)
