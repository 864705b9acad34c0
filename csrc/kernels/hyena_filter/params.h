// What the two sides of hyena_filter share: the parameter block and the shapes of tiles.
#pragma once

namespace tkpy::hyena_filter {

constexpr int kLags = 64;     // of a tile
constexpr int kWidth = 128;   // the widest network, and the channels of a round
constexpr int kThreads = 256;
constexpr int kMostCluster = 8;                            // CTAs of the backward that add up what they find
constexpr int kKept = 3;                                   // layers whose sums the backward keeps in shared memory
constexpr int kTile = kLags * kWidth;                      // floats
constexpr int kForwardBytes = 4 * 2 * kTile;               // shared memory
constexpr int kBackwardBytes = 4 * (4 * kTile + kKept * kTile);

// All float32 but progress; everything but features is contiguous. Of shares, one for each rank in a cluster: what its lags
// add to a gradient.
struct Params {
  const float* features;  // [L, E], strides below
  const float* times;     // [L]
  const float* input;     // [W, E]
  const float* input_bias;
  const float* hidden;    // [N, W, W]
  const float* hidden_bias;
  const float* frequency;
  const float* output;    // [D, W]
  const float* decay;
  float* taps;            // [D, L]; backward: their gradient, which is only read
  // Of the backward; a null one is not wanted.
  float* dfeatures;       // [L, E]
  float* dtimes;          // [L]
  float* dinput;          // [W, E]
  float* dhidden;         // [N, W, W]
  float* doutput;         // [D, W]
  float* dvectors;        // [team, N + 2, W]: of the biases, then of the frequency. Null: nothing inside is wanted
  float* ddecay;          // [team, D]
  float* deep;            // [CTAs, N + 1 - kKept, kTile]: sums of the layers that are not kept
  // [1 + steps * team], zeros: steps that clusters have taken; the gradients that each CTA of each step has added to. Null:
  // there is one step
  unsigned* progress;
  long long feature_stride[2];
  int lags, features_n, width, layers, channels;  // L, E, W, N, D
  int team;               // CTAs of a cluster: a power of two, at most kMostCluster
};

}  // namespace tkpy::hyena_filter
