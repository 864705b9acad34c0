// What the two sides of the group_norm kernels share.
#pragma once

#include "params.h"

namespace tkpy::rows {

constexpr int kMostHeadThreads = 256;                     // of a head
constexpr int kWidestHead = kMostHeadThreads * kElements;

struct HeadNormParams {
  void *x, *gate, *dy, *y, *dx, *dgate;  // [rows][heads][size] contiguous; gate and dgate may be null
  Vector weight, bias;                   // [heads][size]
  float *mean, *rstd;                    // [rows][heads]
  float* partial;                        // [2][splits][heads][size]: shares of the gradients of weight and bias
  long long rows, splits;                // teams of a head, each of which has every n-th row
  int heads, size, lanes, grain, partial_grain;
  float eps;
};

}  // namespace tkpy::rows
