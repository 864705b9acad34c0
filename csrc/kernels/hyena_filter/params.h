// What the two sides of hyena_filter share: the parameter block and the shape of a tile.
#pragma once

namespace tkpy::hyena_filter {

constexpr int kLags = 64;     // of a CTA
constexpr int kWidth = 128;   // the widest network, and the channels of a round
constexpr int kThreads = 256;
constexpr int kSharedBytes = 4 * (2 * kWidth * kWidth + 2 * kLags * kWidth);

// All float32; weights, sums, taps and shares are contiguous.
struct Params {
  const float* features;  // [L, E], strides below
  const float* times;     // [L]
  const float* input;     // [W, E]; backward: [E, W]
  const float* input_bias;
  const float* hidden;    // [N, W, W]; backward: the transpose of each
  const float* hidden_bias;
  const float* frequency;
  const float* output;    // [D, W]; backward: [W, D]
  const float* decay;
  float* taps;            // [D, L]; null: the sums are wanted. Backward: their gradient
  float* sums;            // [N + 1, W, L]
  float* dsums;           // [N + 1, W, L]
  float* dfeatures;       // [E, L]
  float* shares;          // [tiles, W]: what each tile adds to the gradient of the frequency
  long long feature_stride[2];
  int lags, features_n, width, layers, channels;  // L, E, W, N, D
};

}  // namespace tkpy::hyena_filter
