// The kernel of head dimension 256; forward.cuh describes it.
#include "forward.cuh"

TKPY_ATTENTION_FP8(256, 8)
