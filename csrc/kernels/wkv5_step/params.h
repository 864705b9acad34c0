// What the two sides of wkv5_step share: the parameter block and the shapes of its kernels.
#pragma once

#include "kernels/rows/params.h"

namespace tkpy::wkv5_step {

constexpr int kWidths[] = {32, 64, 128};  // head sizes of the kernels; those between go through the next wider
constexpr int kColumns = 4;               // of the state in a thread: 16 bytes

// Rows of the state in a thread: what a CTA of few warps needs to have a whole state under way.
constexpr int rows_of(int width) { return width == 128 ? 8 : 4; }
constexpr int threads_of(int width) { return width * width / (kColumns * rows_of(width)); }

struct Params {
  const void *r, *k, *v, *gate;  // [B, H, N] contiguous, as y; gate may be null
  const float *w, *u;            // [H, N]: raw decay (w = exp(-exp(w))), bonus
  rows::Vector weight, bias;     // [H, N]
  const float* initial;          // [B, H, N, N] or null: zeros
  float* final;
  void* y;
  int heads, size;
  int whole;                     // rows of the states are multiples of 16 bytes, and begin at them
  float eps;
};

}  // namespace tkpy::wkv5_step
