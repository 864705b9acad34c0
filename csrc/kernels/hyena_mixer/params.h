// What the two sides of hyena_mixer share: the parameter block, and the shared memory that a CTA asks for.
#pragma once

#include "kernels/modal_conv/params.h"
#include "kernels/rows/params.h"

namespace tkpy::hyena_mixer {

constexpr int kMostTaps = 8, kUsualTaps = 3;                           // those of StripedHyena and Evo have code of their own
constexpr int kRowBytes = 16;                                         // of z: one sample of neighbouring channels
constexpr int kSamples = modal_conv::kRows * modal_conv::kChunk;      // of a tile
constexpr int kHalo = 8;                                              // rows before a tile, of which taps - 1 are used

// Channels of a CTA, which has a warp for each.
constexpr int channels_of(int sample_bytes) { return kRowBytes / sample_bytes; }
constexpr int fixed_bytes(int sample_bytes) {
  const int filters = 3 * (kMostTaps + 1) * 4;
  return (channels_of(sample_bytes) * (4 * kSamples + filters) + 3 * (kHalo + kSamples) * kRowBytes + 1023) / 1024 * 1024;
}
constexpr int shared_bytes(int sample_bytes, int groups) {
  return fixed_bytes(sample_bytes) + channels_of(sample_bytes) * modal_conv::table_bytes(sample_bytes, groups);
}
static_assert(2 * (shared_bytes(2, 1) + 1024) <= 228 * 1024 && 2 * (shared_bytes(4, 2) + 1024) <= 228 * 1024,
              "two CTAs of 8 modes, of 16 in f32, are on an SM, which takes 1 KB for each");

struct Params {
  modal_conv::Params conv;         // poles, residues, skip, start, local, their sizes, tiles and segments; no signals
  const void* z;                   // [B, L, 3 W], channels side by side; strides in elements
  long long z_batch, z_time;
  rows::Vector weight, bias;       // [3 W, taps], [3 W]
  const void* before;              // [B, 3 W, taps - 1] the inputs before the first, or null: zeros
  void* after;                     // the last inputs, or null: not wanted
  void* y;                         // [B, L, W]
  modal_conv::Complex* end;        // [B, W, S] the state after the last sample, or null
  int length, part, taps;          // part: neighbouring channels of x2, x1 or v: W / groups
  int blocks;                      // of channels
  int vectors;                     // a row of z is 16 bytes that begin at a multiple of them
  int grain;                       // bytes of an access to y
};

// Of a channel's tile: its pieces of bf16, later its samples as float32.
constexpr int work_bytes(int sample_bytes) { return 2 * kSamples * (sample_bytes == 4 ? 3 : 2); }
// Shared memory of the backward: two tiles a channel, rows of three parts and of dy.
constexpr int backward_shared_bytes(int sample_bytes) {
  const int channels = channels_of(sample_bytes), filters = 3 * (kMostTaps + 1) * 4, later = 2 * 3 * kMostTaps * 4;
  const int tables = modal_conv::backward_bytes(sample_bytes, 0, 1) - 4 * modal_conv::tile_bytes(sample_bytes);
  const int bytes = channels * (2 * work_bytes(sample_bytes) + tables + filters + later + channels * filters) +
                    4 * (kHalo + kSamples) * kRowBytes;
  return (bytes + 1023) / 1024 * 1024;
}

struct BackwardParams {
  Params mix;                       // z, its filters, what came before, sizes; nothing that the forward writes
  modal_conv::BackwardParams conv;  // without signals
  const void* dy;                   // [B, L, W], channels side by side; strides in elements
  long long dy_batch, dy_time;
  void* dz;                         // [B, L, 3 W]
  const void* dafter;               // [B, 3 W, taps - 1] the gradient of the last inputs, or null
  float* borders;                   // [2, segments, B, 3 W, taps - 1] dz of the samples before each segment as far as it
                                    // is this one's; of its own last ones, which the next segment's are added to
  float *dweight, *dbias;           // [segments, B, 3 W, taps], [segments, B, 3 W] or null
  int dy_vectors, dz_vectors;       // rows of 16 bytes that begin at multiples of them
};

}  // namespace tkpy::hyena_mixer
