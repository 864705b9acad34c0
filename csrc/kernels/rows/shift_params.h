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
  float* partial;                            // [batches][runs][mixes][channels]: what each run adds to mix's gradient
  unsigned units, chunks, runs;              // units = batches * runs * chunks; runs of a sequence
  long long plane;                           // batches * length * channels
  int length, tokens, channels, mixes;       // tokens of a run
  int grain, mix_grain, partial_grain;
};

}  // namespace tkpy::rows
