// What the two sides of time_mix_step share: the parameter block and the shapes of its kernels.
#pragma once

#include "kernels/rows/params.h"

namespace tkpy::time_mix_step {

constexpr int kWidths[] = {32, 64, 128};  // head sizes of the kernels; those between go through the next wider
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kProjections = 4, kMostBatch = 16, kMostCluster = 8;
constexpr int kPiece = 64, kChunk = 256;  // channels: slices, and what is mixed at once, are multiples of them
constexpr int kSkew = 32;                 // elements between rows in shared memory: two rows have different banks
constexpr int kChunkBytes = 135168;       // of mixed rows in shared memory: sixteen of 1,024 channels, four times

// What a CTA adds up of each projection, [projection][row][channel of the head].
constexpr int pitch_of(int width) { return width + 4; }
constexpr int sums_bytes(int width) { return 4 * kProjections * kMostBatch * pitch_of(width); }
constexpr int mixed_bytes(int rows, int chunk) { return 2 * kProjections * rows * (chunk + kSkew); }
// In the place of the mixed rows, after the products: r, k, v, y, the warps' shares of y, decay and bonus.
constexpr int after_bytes(int width) { return 4 * width * (kMostBatch * (4 + kWarps) + 2); }

struct Params {
  const void *x, *last;              // [B, C]; last may be null
  rows::Vector mix;                  // [projections, C]
  const void* weights[kProjections]; // [H N, C] with `pitch` elements from row to row: r, k, v, gate
  long long pitch[kProjections];
  const float *w, *u;                // [H, N]: raw decay (w = exp(-exp(w))), bonus
  rows::Vector weight, bias;         // [H, N]
  const float* initial;              // [B, H, N, N] or null: zeros
  float* final;
  void* z;                           // [B, H, N]
  int batch, channels, heads, size, projections;
  int ranks, slice, chunk;           // CTAs of a head; channels of each, and of them in shared memory at once
  int whole;                         // rows of x, last, mix and weights are multiples of 16 bytes, and begin at them
  int whole_states;                  // likewise those of the states
  float eps;
};

}  // namespace tkpy::time_mix_step
