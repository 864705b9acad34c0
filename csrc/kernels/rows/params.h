// What the two sides of the row kernels share: parameter blocks and how threads are dealt out.
#pragma once

namespace tkpy::rows {

constexpr int kElements = 16;       // of a row: what a thread holds at once
constexpr int kThreads = 128;       // of a CTA that has several rows at a time
constexpr int kMostThreads = 512, kMostThreadsBackward = 256;  // of a CTA that has one
constexpr int kSumColumns = 32, kSumThreads = 512;

enum Kind : int { kF32, kBf16, kF16 };

// Rows of contiguous elements, `pitch` elements apart; data is null where there is none.
struct Matrix {
  void* data;
  long long pitch;
};
struct Vector {
  const void* data;  // contiguous, or null
  int kind;
};

// Threads that share a row.
constexpr int lanes_for(long long columns, int most) {
  const long long wanted = (columns + kElements - 1) / kElements;
  int lanes = 1;
  while (lanes < 32 && lanes < wanted) lanes *= 2;
  if (wanted > 32) lanes = static_cast<int>(wanted < most ? (wanted + 31) / 32 * 32 : most);
  return lanes;
}

// rms_norm and layer_norm, both directions. z = residual + dropout(x), y = norm(z).
struct NormParams {
  Matrix x, residual, z, y;        // forward: y and, with a residual or dropout, z are written
  Matrix dy, dz, dx, dresidual;    // backward: reads z (or x in its place), dy and dz
  Vector weight, bias;
  float *mean, *rstd;              // [rows], layer_norm only
  float* partial;                  // [1 or 2][CTAs][columns]: each CTA's share of the gradients of weight and bias
  const long long* seed;           // the key of the dropout's generator
  long long rows;
  int columns, lanes, grain;       // lanes: threads of a row; grain: bytes of an access, 16, 4 or 2, that all rows allow
  float eps;
  int inside;                      // eps is inside the square root
  unsigned threshold;              // of 2^32: what is dropped; 0 is no dropout
  float scale;                     // of what is kept
};

// out[c] = sum over r of partial[r][c], one such sum for each of blockIdx.y = 0, 1.
struct SumParams {
  const float* partial;  // [..][rows][columns]
  void* out[2];          // null: not wanted
  int kind[2];
  int rows, columns;
};

}  // namespace tkpy::rows
