// hyena_mixer on 16-bit samples: mixer.cuh describes it.
// precision  filters, gates and sums fp32, products of two bf16 pieces, states double from tile to tile
// limits     S <= 32, K <= 8; 128 registers, so that two CTAs are on an SM where S <= 8
// cost       a sample and channel: 4 elements moved, 6 K + 4 flops, three products of 32 + 64 ceil(S / 8)
#include "mixer.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) hyena_mixer_bf16(const __grid_constant__ tkpy::hyena_mixer::Params p) {
  tkpy::hyena_mixer::mix<tk::bf16>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2) hyena_mixer_fp16(const __grid_constant__ tkpy::hyena_mixer::Params p) {
  tkpy::hyena_mixer::mix<tk::fp16>(p);
}
