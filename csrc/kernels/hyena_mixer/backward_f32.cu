// The backward of hyena_mixer on float32 samples: backward.cuh.
#include "backward.cuh"

extern "C" __global__ void __launch_bounds__(128, 1)
    hyena_mixer_backward_f32(const __grid_constant__ tkpy::hyena_mixer::BackwardParams p) {
  tkpy::hyena_mixer::mix_backward<float>(p);
}
