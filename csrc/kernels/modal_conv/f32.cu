// modal_conv on float32 samples: conv.cuh.
#include "conv.cuh"

extern "C" __global__ void __launch_bounds__(32) modal_conv_f32(const __grid_constant__ tkpy::modal_conv::Params p) {
  tkpy::modal_conv::Conv<float>::run(p);
}
