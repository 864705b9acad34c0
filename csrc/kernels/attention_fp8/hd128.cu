// The kernel of head dimension 128; forward.cuh describes it.
#include "forward.cuh"

TKPY_ATTENTION_FP8(128, 3)
