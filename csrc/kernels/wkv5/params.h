// What the two sides of wkv5 share: the parameter block and the shapes of its kernels.
#pragma once

#include "tk/tensor_map.h"

namespace tkpy::wkv5 {

constexpr int kChunk = 16;     // tokens: the rows of mma.sync
constexpr int kStages = 4;     // chunks under way
constexpr int kWidths[] = {32, 64, 128};  // head sizes of the kernels; multiples of 8 between go through the next wider

// Dynamic shared memory of the kernels, by width; fp16 keeps what bf16 does in two parts.
struct Shared {
  int states, outputs[2], backward[2];
};
constexpr Shared kShared[] = {{13824, {25600, 27648}, {25600, 28672}},
                              {35840, {50176, 54272}, {54272, 64512}},
                              {104448, {98304, 106496}, {124928, 161792}}};
constexpr int shape_of(int width) { return width == 32 ? 0 : width == 64 ? 1 : 2; }

enum { kR, kK, kV, kGy };  // backwards r and k, v and gy change places: i ^ 1

// Sequences are cut into segments of `segment` tokens, a multiple of 16, each a CTA's work. Packed sequence i has the
// slots from cu_seqlens[i] / segment + i on: enough for any length, and found by a binary search.
struct Params {
  tk::tensor_map data[4];      // r, k, v, gy: [B, T, H, N], boxes of 16 tokens of a head
  void* y;                     // contiguous [B, T, H, N], as all outputs
  void *gr, *gk, *gv;
  const float *w, *u;          // [H, N]: raw decay (w = exp(-exp(w))), bonus
  const float* initial;        // [sequences, H, N, N] or null: zeros
  float* final;                // or null
  const float* g_final;        // or null: zeros
  float* g_initial;            // or null
  float* states;               // [slots, H, N, N]: of segments alone, then at their starts; null: one segment each
  float* spread;               // the same of dS / d ln w (backward.cuh), or null
  float* g_states;             // the same of dL/dS, at the segments' ends
  float* g_log_w[2];           // [slots, H, N]: shares of dL / d ln w
  float* g_u;                  // [slots, H, N]
  const int* cu_seqlens;       // [sequences + 1] or null: sequence b is row b
  int sequences, length, heads, size;
  int segment, segments, slots;  // segments: of a row, where there is no cu_seqlens
  int backwards;               // of wkv5_states, wkv5_join and wkv5_backward: which way, S or G
};

}  // namespace tkpy::wkv5
