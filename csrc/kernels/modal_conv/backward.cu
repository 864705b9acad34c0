// The backward of modal_conv: backward.cuh.
#include "backward.cuh"

#define TKPY_MODAL_BACKWARD(T, NAME)                                                      \
  extern "C" __global__ void __launch_bounds__(32)                                        \
      modal_backward_##NAME(const __grid_constant__ tkpy::modal_conv::BackwardParams p) { \
    tkpy::modal_conv::backward<T>(p);                                                     \
  }
TKPY_MODAL_BACKWARD(tk::bf16, bf16)
TKPY_MODAL_BACKWARD(tk::fp16, fp16)
TKPY_MODAL_BACKWARD(float, f32)
