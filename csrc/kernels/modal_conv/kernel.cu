// modal_conv on 16-bit samples; conv.cuh describes it, steps.cu and backward.cuh what goes with it.
// precision  products of bf16 pieces to 2^-17, sums fp32, states double from tile to tile
// registers  128: 16 CTAs of a warp on an SM
// limits     whole chunks of 64 samples, S <= 32
// cost       a sample: 4 elements moved, three products of 32 + 64 ceil(S / 8) flops
#include "conv.cuh"

#define TKPY_MODAL_CONV(T)                                                                                              \
  extern "C" __global__ void __launch_bounds__(32, 16) modal_conv_##T(const __grid_constant__ tkpy::modal_conv::Params p) { \
    tkpy::modal_conv::Conv<tk::T>::run(p);                                                                              \
  }
TKPY_MODAL_CONV(bf16)
TKPY_MODAL_CONV(fp16)
