// What the two sides of the rotary kernel share.
#pragma once

namespace tkpy::rows {

constexpr int kRotaryThreads = 128, kRotaryHeads = 8;  // heads that share the angles of a thread
constexpr int kMostPairs = 256;

struct RotaryParams {
  const void* x;  // [batches][length][heads][2 half], strides in elements
  void* y;        // the same, contiguous
  const void* positions;
  long long x_batch, x_token, x_head, position_batch, position_token;
  unsigned units, chunks, blocks, length;  // units = batches * length * blocks of heads * chunks of pairs
  int heads, half, grain, long_positions;
  float direction;            // 1 turns, -1 turns back
  double scaling;             // positions are divided by it
  double turns[kMostPairs];   // of pair i at position 1: base^(-i / half) / (2 pi)
};

}  // namespace tkpy::rows
