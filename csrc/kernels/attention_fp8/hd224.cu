// The kernel of head dimension 224; forward.cuh describes it.
#include "forward.cuh"

TKPY_ATTENTION_FP8(224, 7)
