// What the two sides of the short_conv kernels share.
#pragma once

#include "kernels/rows/params.h"

namespace tkpy::short_conv {

constexpr int kThreads = 128, kMostTaps = 8;
constexpr int kTimes = 8;         // of a chunk: what a thread has of a channel at once
constexpr int kTimeLanes = 8;     // of a warp that turns x: 4 lanes beside each other have 16 bytes of channels each
constexpr int kBlock = kTimes * kTimeLanes;  // times that such a warp turns at once
constexpr int kTurnLanes = 4;
constexpr int kRowFloats = 16;    // of a channel in shared memory: 8 taps, the bias, 7 gradients

// [batches][channels][times], strides in elements; data is null where there is none.
struct Signal {
  void* data;
  long long batch, channel, time;
};

struct Params {
  Signal x, y;                  // backward: y is its gradient; times of y are beside each other
  Signal dx;                    // contiguous
  Signal initial, dfinal;       // [sequences][channels][taps - 1]
  const int* bounds;            // [sequences + 1] where the sequences of one row begin; null: a row is a sequence
  void *final, *dinitial;       // the same, contiguous, or null
  rows::Vector weight, bias;    // [channels][taps], [channels]
  float *dweight, *dbias;       // [batches][runs][channels][taps] and without the taps: each run's share
  int batches, sequences, channels, length, taps;
  int tokens, runs, groups;     // times of a run; runs of a row; warps that share a run
  int lanes;                    // threads of a warp that share a channel
  int silu;
  int warp_bytes;               // shared memory of a warp that turns x
  int shifted;                  // whether some channels of y begin at no multiple of a chunk's bytes
  int grain;                    // bytes of an access to the channels of x, where those are beside each other
};

// Bytes of shared memory of a warp that turns x: two blocks of it, rows of kRowFloats, sums of the backward.
constexpr int turned_bytes(int element, int sums) {
  const int channels = 16 / element;
  return 2 * kBlock * kTurnLanes * 16 + (kTurnLanes * channels * kRowFloats + 4 * kTurnLanes) * 4 + sums * channels * 32 * 4;
}

}  // namespace tkpy::short_conv
