// What the two sides of the GEMM share: the parameter block, the tile sizes, the activations.
#pragma once

#include "tk/tensor_map.h"

namespace tkpy::gemm {

// Names are part of the interface: tkpy.ops.linear passes them as strings.
enum class Activation : int { none, gelu, gelu_tanh, silu, relu, relu_squared };

constexpr int kTileRows = 128;  // of C, per CTA
constexpr int kTileCols = 256;  // of C, per cluster: both CTAs share B
constexpr int kTileDepth = 64;  // of K, per stage
constexpr int kCluster = 2;     // CTAs, one above the other
constexpr int kConsumers = 2;   // warpgroups of 64 rows each
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kStages = 4;
constexpr int kGroupRows = 8;                  // cluster tiles that share columns of B in L2
constexpr unsigned kPatchBytes = 16 * 64 * 4;  // per consumer warp: 16 x 64 fp32 of C on their way out
constexpr unsigned kStageBytes = 2 * kTileDepth * (kTileRows + kTileCols);
constexpr unsigned kSharedBytes = kStages * kStageBytes + 4 * kConsumers * kPatchBytes + 2 * 8 * kStages;

struct Params {
  tk::tensor_map a, b;  // TMA kernels: box {64, 64}, swizzle 128
  const void* a_data;   // generic kernels: plain pointers and pitches, in elements
  const void* b_data;
  long long a_pitch, b_pitch;
  const void* bias;      // [n] or null
  const void* residual;  // [m, n] or null
  void* out;             // [m, n]
  long long residual_pitch, out_pitch;
  int m, n, k;
  Activation activation;
};

}  // namespace tkpy::gemm
