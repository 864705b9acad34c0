// What the two sides of hyena_step share: the parameter block and how threads are dealt out.
#pragma once

#include "kernels/rows/params.h"

namespace tkpy::hyena_step {

constexpr int kMostTaps = 8, kMostModes = 32;
constexpr int kLanes = 4;     // of a channel: three take its short filters, each has two modes of every eight
constexpr int kThreads = 128;
constexpr int kChannels = kThreads / kLanes;

struct alignas(8) Complex {
  float re, im;
};

struct Params {
  const void* z;                         // [B, 3 W] contiguous, as y: the new inputs of the short filters
  void* y;                               // [B, W]
  const void* before;                    // [B, 3 W, taps - 1] their last inputs, or null: zeros
  void* after;
  rows::Vector weight, bias, skip;       // [3 W, taps], [3 W], [W]
  const Complex *poles, *residues;       // [W, S]
  const Complex* start;                  // [B, W, S], or null: zeros
  Complex* end;
  int batch, width, part, taps, modes;   // part: neighbouring channels of x2, x1 or v: width / groups
  int pairs;                             // two modes are 16 bytes that begin at a multiple of them
};

}  // namespace tkpy::hyena_step
