// The kernel of head dimension 64; forward.cuh describes it.
#include "forward.cuh"

TKPY_ATTENTION_FP8(64, 1)
