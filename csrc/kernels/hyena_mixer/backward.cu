// The backward of hyena_mixer on 16-bit samples: backward.cuh.
#include "backward.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
    hyena_mixer_backward_bf16(const __grid_constant__ tkpy::hyena_mixer::BackwardParams p) {
  tkpy::hyena_mixer::mix_backward<tk::bf16>(p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    hyena_mixer_backward_fp16(const __grid_constant__ tkpy::hyena_mixer::BackwardParams p) {
  tkpy::hyena_mixer::mix_backward<tk::fp16>(p);
}
