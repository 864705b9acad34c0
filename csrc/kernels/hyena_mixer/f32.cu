// hyena_mixer on float32 samples: mixer.cuh.
#include "mixer.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) hyena_mixer_f32(const __grid_constant__ tkpy::hyena_mixer::Params p) {
  tkpy::hyena_mixer::mix<float>(p);
}
