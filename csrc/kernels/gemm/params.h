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
constexpr int kGatedStages = 3;  // of the gated kernels that read two inputs
constexpr unsigned kSharedBytes = kStages * kStageBytes + 4 * kConsumers * kPatchBytes + 2 * 8 * kStages;

constexpr unsigned kGatedSharedBytes = kGatedStages * (kStageBytes + 2 * kTileDepth * kTileRows) +
                                       4 * kConsumers * kPatchBytes + 2 * 8 * kGatedStages;

// A matrix of every group in plain memory, as it is stored. Column j of group g is column f of a row of `pitch` elements:
//   f = g block + j step, or where the columns are shuffled (x = g block + j)   f = x % groups * block + x / groups
// Columns with f >= end do not exist. A matrix that is no channel of anything has step 1 and no end.
struct Blocks {
  void* data;
  long long pitch, block, end;
  int step;
  bool shuffled;
};

// Gate and value before the activation, with h's channels and a pitch of their own: gated kernels write them where there
// is an address, `slopes` reads them and writes the gradients of both where there is one.
struct Kept {
  void *gate, *value, *dgate, *dvalue;
  long long pitch, slopes_pitch;
  bool fours;  // four columns of any of these, and of h, lie on a multiple of 8 bytes
};

struct Params {
  tk::tensor_map a, b, b2;  // TMA kernels: [groups, rows, columns] as stored, box {1, 64 or 128, 64}, swizzle 128
  Blocks a_data, b_data, b2_data, out;  // b2: of the gated kernels, and of a pair
  const void* bias;      // [columns of out] or null
  const void* residual;  // as out, with a pitch of its own; or null
  long long residual_pitch;
  long long out_share;     // elements between the shares of out
  int m, n, k, groups;     // of a group
  int shares, share_depth; // K in `shares` parts of share_depth, a multiple of kTileDepth
  bool out_float;          // out is fp32: sums, neither bias nor activation nor rounding
  bool pair;               // K has two parts of k: a's group 1 times b2 comes after a's group 0 times b
  Activation activation;
  Kept kept;               // of the gated kernels, whose `out` is h, or has no data
};

}  // namespace tkpy::gemm
