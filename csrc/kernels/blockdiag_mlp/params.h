// What the two sides of the fused blockdiag_mlp share: the parameter block, tile sizes, how much shared memory a CTA takes.
#pragma once

#include "kernels/gemm/params.h"

namespace tkpy::blockdiag_mlp {

constexpr int kCluster = 2;    // CTAs, one above the other, that share the weights
constexpr int kConsumers = 2;  // warpgroups of 64 rows each
constexpr int kTileRows = 64 * kConsumers;  // of a CTA
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kChunk = 64;     // hidden channels of a step
constexpr int kMostWidth = 256;
constexpr unsigned kMostShared = 232448;

// A kernel of `width` channels serves blocks of at most that many inputs and outputs; TMA reads zeros for the rest.
constexpr int kWidths[] = {128, 192, 256};
constexpr unsigned panel_bytes(int rows) { return 2u * 64u * static_cast<unsigned>(rows); }  // 64 columns
constexpr unsigned x_bytes(int width) { return kConsumers * 2 * panel_bytes(64) * static_cast<unsigned>(width / 64); }
constexpr unsigned slot_bytes(int width) { return panel_bytes(width); }
// Where x leaves no room, y goes out through x's own tiles.
constexpr int kMostKept = 192;  // gate and value go out through a patch of its own
constexpr unsigned patch_bytes(int width) { return width < kMostWidth ? kConsumers * panel_bytes(64) : 0; }
constexpr int stages(int width) {
  const unsigned fit = (kMostShared - 1024 - x_bytes(width) - patch_bytes(width)) / slot_bytes(width);
  return fit < 12 ? static_cast<int>(fit) : 12;
}
constexpr unsigned shared_bytes(int width) {  // with a kilobyte for the barriers, which leaves tiles where TMA wants them
  return x_bytes(width) + patch_bytes(width) + static_cast<unsigned>(stages(width)) * slot_bytes(width) + 1024;
}

struct Params {
  tk::tensor_map x;      // [blocks, rows, width of x's blocks], box {1, 64, 64}
  tk::tensor_map gated;  // [2 blocks, hidden, width of x's blocks], box {1, 32, 64}: gates of all blocks, then values
  tk::tensor_map wo;     // [blocks, out, hidden], box {1, 32, 64}
  const void* bias;      // [blocks out] or null
  void* y;               // [rows, blocks out], contiguous
  void *gate, *value;    // [rows, blocks hidden] before the activation, for a backward; or null
  long long kept_pitch;
  int rows, blocks;
  int hidden, out;       // of a block
  gemm::Activation activation;
};

}  // namespace tkpy::blockdiag_mlp
