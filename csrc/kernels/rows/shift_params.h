// What the two sides of the token_shift kernels share.
#pragma once

#include "params.h"

namespace tkpy::rows {

constexpr int kShiftThreads = 128, kMostMixes = 16;
constexpr int kShiftTokens = 4;  // that a thread has at once

struct ShiftParams {
  const void *x, *last;                      // [batches][length][channels] and [batches][channels] or null, any pitches
  long long x_batch, x_token, last_batch;    // in elements
  Vector mix;                                // [mixes][channels]
  void* y;                                   // [mixes][batches][length][channels], of which the backward has the gradient
  void *dx, *dlast;                          // [batches][length][channels], [batches][channels] or null
  float* partial;                            // [shares][mixes][channels]: what each CTA's runs add to mix's gradient
  unsigned rows, runs;                       // rows = batches * runs, the runs of a sequence
  unsigned lane_bits, across;                // 2^lane_bits chunks of channels in a CTA, CTAs side by side
  long long plane;                           // batches * length * channels
  int length, tokens, channels, mixes;       // tokens of a run
  int grain, mix_grain, partial_grain;
};

}  // namespace tkpy::rows
