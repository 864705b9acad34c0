// The gradients of modal_conv's parameters: gradient.cuh.
#include "gradient.cuh"

#define TKPY_MODAL_GRADIENT(T, NAME)                                                 \
  extern "C" __global__ void __launch_bounds__(32)                                   \
      modal_gradient_##NAME(const __grid_constant__ tkpy::modal_conv::GradientParams p) { \
    tkpy::modal_conv::Gradient<T>::run(p);                                           \
  }
TKPY_MODAL_GRADIENT(tk::bf16, bf16)
TKPY_MODAL_GRADIENT(tk::fp16, fp16)
TKPY_MODAL_GRADIENT(float, f32)
