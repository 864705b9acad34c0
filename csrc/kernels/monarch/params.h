// What the two sides of monarch_multiply share: the parameter block, sizes, how much shared memory a CTA takes.
#pragma once

#include "tk/layout.h"

namespace tkpy::monarch {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostRows = 64;   // of a tile; always a multiple of 16
constexpr int kMostRanks = 8;   // CTAs of a cluster, which share a tile's channels
constexpr long long kMostShared = 224 * 1024;

// Blocks [blocks, out, in], contiguous. The first factor's are consecutive channels of its input, the second's are
// every `blocks`-th channel.
struct Factor {
  const void* weight;
  int blocks, out, in;
};

struct Params {
  const void* in;    // forward x, backward dy; rows of in_pitch elements
  void* middle;      // forward h, backward dh, contiguous; or null
  void* out;         // forward y, backward dx, contiguous
  long long in_pitch;
  Factor first, second;  // backward: with every block transposed
  int rows, tile, ranks; // rows in all, of a tile; CTAs of a cluster
};

TK_HD constexpr long long share_of(int count, int ranks) { return (count + ranks - 1) / ranks; }
// Granules (eight neighbouring strided blocks) of `inner` channels each; consecutive blocks of `inner` channels.
TK_HD constexpr long long strided_bytes(const Params& p, int inner) {
  return 16ll * p.tile * share_of(p.second.blocks / 8, p.ranks) * inner;
}
TK_HD constexpr long long consecutive_bytes(const Params& p, int inner) {
  return 2ll * p.tile * share_of(p.first.blocks, p.ranks) * inner;
}
// The forward keeps h; the backward dy and dh.
TK_HD constexpr long long shared_bytes(const Params& p, bool backward) {
  return backward ? strided_bytes(p, p.second.in) + consecutive_bytes(p, p.first.in) : strided_bytes(p, p.second.in);
}

// dw[block, i, j] = sum over rows of a[row, block, i] b[row, block, j], in shares of the rows.
// Blocks are every `blocks`-th channel of a and b, or consecutive channels.
struct Gradient {
  const void *a, *b;  // rows of a_pitch and b_pitch elements
  float* sums;        // [shares, blocks, out, in]
  long long a_pitch, b_pitch;
  int rows, share_rows;  // share_rows: a multiple of kStepRows
  int blocks, out, in;
};

constexpr int kSide = 64;      // of a tile of a block, out and in
constexpr int kStepRows = 32;
constexpr int kStages = 2;
constexpr int kGradientShared = kStages * 2 * kWarps * kSide * kStepRows * 2;

// The backward in one launch, or half of it in each of two: a cluster for every share of the sums.
struct Whole {
  const void *x, *dy;
  void* dx;                      // contiguous, or null
  float *of_first, *of_second;   // shares [clusters, blocks, out, in] of the factors as they are here; the other half's: null
  long long x_pitch, dy_pitch;
  Factor first, second;          // second: with every block transposed
  int rows, ranks;
};

constexpr int kWholeRows = 32;   // of a tile
constexpr int kWholeStages = 2;
constexpr int kWholeSide = 48, kHalfSide = 64;  // of a block, at most
// In bytes of a CTA: eight blocks' weights; a tile of so many of their channels.
TK_HD constexpr int weight_bytes(const Factor& f) { return 2 * kWarps * f.out * f.in; }
TK_HD constexpr int tile_bytes(int channels) { return 2 * kWarps * channels * kWholeRows; }
// What a side of the whole takes; each of the three buffers of a half.
TK_HD constexpr int whole_side(const Factor& f) {
  return weight_bytes(f) + kWholeStages * tile_bytes(f.in) + tile_bytes(f.out);
}
TK_HD constexpr int most(int a, int b) { return a > b ? a : b; }
TK_HD constexpr int half_buffer(const Whole& p) {
  return tile_bytes(most(most(p.first.in, p.first.out), most(p.second.in, p.second.out)));
}
TK_HD constexpr int whole_bytes(const Whole& p) {
  const bool both = p.of_first != nullptr && p.of_second != nullptr;
  if (both) return whole_side(p.first) + whole_side(p.second);
  return weight_bytes(p.first) + (p.of_first != nullptr ? weight_bytes(p.second) : 0) + 3 * half_buffer(p);
}

// The forward of such blocks, where h is not wanted.
struct Product {
  const void* x;
  void* y;  // contiguous
  long long x_pitch;
  Factor first, second;
  int rows, ranks;
};

TK_HD constexpr int product_stage(const Product& p) { return tile_bytes(most(p.first.in, p.second.out)); }
TK_HD constexpr int product_bytes(const Product& p) {
  return weight_bytes(p.first) + weight_bytes(p.second) + tile_bytes(p.second.in) + kWholeStages * product_stage(p);
}

}  // namespace tkpy::monarch
