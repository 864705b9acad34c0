// What the kernels of hyena_filter do with a tile of 64 lags: products, sines, the window.
//
// product   D [128 x 64 lags] += weights [128 x K] B^T, B [64 lags x K] in shared memory; warp w has rows 16 w .. of D in
//           registers, and loads the same rows of the weights from memory (L2) as its operand A, 32 columns at a time,
//           the next while the tensor cores have these. A warpgroup without rows does nothing.
// turned    B of the next product is this one's result, put there by scalar stores, which the swizzle keeps free of bank
//           conflicts. wgmma reads tf32 along K in both operands, so it lies turned over: K is the row of the result.
// order     an accumulator holds neighbouring columns where operand A has columns 4 apart (PTX ISA, register fragments of
//           wgmma: m64k8 and D). The columns of a product may come in any order that both operands have, so A is taken as
//           an accumulator lies, and column k of B is put where that order has it, at place(k).
// precision float32 as three tf32 products, x = hi + lo: hi hi + hi lo + lo hi, 2^-21 of a term; sums fp32. Sines by
//           reduction with pi/2 in three parts: 2^-23 for phases up to 2^20, which is where they stop to mean much
#pragma once

#include "tk/tk.cuh"

#include "params.h"

namespace tkpy::hyena_filter {

using namespace tk;
using Result = rt_fl<16, kLags>;  // of a warp
using Operand = rt<tf32, 16, 32>;

// B of a product; `hi` and `lo` add up to what was put.
struct Turned {
  st<tf32, kLags, kWidth> hi, lo;
};

TK_HD constexpr int place(int k) { return (k & ~7) | (k & 7) >> 1 | (k & 1) << 2; }

// The first row of the result that this warp holds.
TK_DEVICE int first_row() { return 16 * warp_index(); }

// sin(x + quarters pi / 2).
TK_DEVICE float circular(float x, int quarters) {
  const float n = rintf(x * 0.636619772f);
  float r = fmaf(n, -1.57079637f, x);
  r = fmaf(n, 4.37113883e-8f, r);
  r = fmaf(n, 1.71512451e-15f, r);
  const float s = r * r;
  const float sine = fmaf(r * s, fmaf(s, fmaf(s, -1.95152959e-4f, 8.33216087e-3f), -0.166666546f), r);
  const float cosine = fmaf(s * s, fmaf(s, fmaf(s, 2.44331571e-5f, -1.38873162e-3f), 4.16666456e-2f), fmaf(s, -0.5f, 1.0f));
  const int quadrant = static_cast<int>(n) + quarters;
  const float value = quadrant & 1 ? cosine : sine;
  return quadrant & 2 ? -value : value;
}

// 32 columns of a tile as operand A.
template <int Cols>
TK_DEVICE void split(Operand& hi, Operand& lo, const rt_fl<16, Cols>& x, int first) {
  constexpr int from[4] = {0, 2, 1, 3};  // element of an accumulator: columns 2 t and 2 t + 1, then 8 rows further down
#pragma unroll
  for (int e = 0; e < Operand::elements; ++e) {
    const float value = x.x[0][first / 2 + e / 4 * 4 + from[e % 4]];
    hi.x[0][e] = ptx::to_tf32(value);
    lo.x[0][e] = ptx::to_tf32(value - hi.x[0][e]);
  }
}

// Where the elements of a result lie in a tile [lags x rows] or [rows x lags] whose row of the result, or lag, is in the order
// of `place`. Offsets are linear in bits, those of a thread's corner and of an element have none in common, and tiles begin at
// multiples of 1024: what an element adds below 1024 is one of few constants to XOR with, the rest to add.
template <class Tile>
struct Places {
  static constexpr TK_HD u32 of(int row, int lag) {
    const bool turned = Tile::rows == kLags;
    return tile_offset(Tile::rows, Tile::cols, sizeof(tf32), Tile::swizzle, turned ? lag : row, place(turned ? row : lag));
  }
  u32 corner;
  TK_DEVICE explicit Places(const Tile& tile)
      : corner(ptx::shared_address(&tile) + of(first_row() + Result::corner_row(), Result::corner_col())) {}
  TK_DEVICE u32 operator[](int e) const {
    const u32 own = of(Result::row_step(0, e), Result::col_step(0, e));
    return (corner ^ own % 1024) + own / 1024 * 1024;
  }
};

// After a barrier, when all have read what was there: b = d or, in Turned, d^t. To be published.
template <class Both>
TK_DEVICE void put(Both& b, const Result& d) {
  const Places at(b.hi);
#pragma unroll
  for (int e = 0; e < Result::elements; ++e) {
    const float x = d.get(0, e), hi = ptx::to_tf32(x);
    ptx::st_shared(at[e], hi);
    ptx::st_shared(at[e] + sizeof(b.hi), ptx::to_tf32(x - hi));
  }
}

TK_DEVICE void publish() {
  publish_tile();
  __syncthreads();
}

// d += weights b^t: rows of the weights from `row` on, their columns col .. col + depth - 1.
TK_DEVICE void product(Result& d, Turned& b, const view<const float>& weights, int row, int col, int depth) {
  if (row + 64 * warpgroup_index() >= weights.rows) return;
  __builtin_assume(__isGlobal(weights.data));  // which the compiler does not see through a choice of pointers
  rt_fl<16, 32> next;
  zero(next);
#pragma unroll 1
  for (int k = -32; k < depth; k += 32) {
    Operand hi, lo;
    split(hi, lo, next, 0);
    if (k + 32 < depth) load(next, weights, row + first_row(), col + k + 32);
    if (k < 0) continue;
    const auto b_hi = subtile<kLags, 32>(b.hi, 0, k), b_lo = subtile<kLags, 32>(b.lo, 0, k);
    mma_fence();
    mma_ABt(d, hi, b_hi);
    mma_ABt(d, hi, b_lo);
    mma_ABt(d, lo, b_hi);
    mma_commit();
    mma_wait(d);
  }
}

// Layer n: its weights, its bias.
TK_DEVICE view<const float> layer(const Params& p, int n) {
  if (n == 0) return {p.input, p.width, p.features_n, p.features_n};
  return {p.hidden + (n - 1ll) * p.width * p.width, p.width, p.width, p.width};
}
TK_DEVICE vec_view<const float> bias(const Params& p, int n) {
  return {n == 0 ? p.input_bias : p.hidden_bias + (n - 1ll) * p.width, p.width};
}
TK_DEVICE view<const float> output(const Params& p) { return {p.output, p.channels, p.width, p.width}; }

// The features as a result of a product has its lags: [E x 64].
TK_DEVICE void load_features(const Params& p, Result& x, int lag) {
  load(x, view<const float>{p.features, p.features_n, p.lags, p.feature_stride[1], p.feature_stride[0]}, first_row(), lag);
}

// d = sin(frequency d).
TK_DEVICE void sine(const Params& p, Result& d) {
  Result::per_row frequency;
  load(frequency, vec_view<const float>{p.frequency, p.width}, first_row());
  mul(d, d, frequency);
  map(d, d, [](float phase) { return circular(phase, 0); });
}

// |decay| of the channels from `channel` on, and the times: what lies outside must not make 0 times infinity of either.
struct Window {
  Result::per_row rate;
  Result::per_col time;
  TK_DEVICE Window(const Params& p, int channel, int lag) {
    load(rate, vec_view<const float>{p.decay, p.channels}, channel + first_row(), 1.0f);
    load(time, vec_view<const float>{p.times, p.lags}, lag, 1.0f);
    abs(rate, rate);
  }
  // d times exp(-|decay| t).
  TK_DEVICE void apply(Result& d) const {
    Result factor;
    broadcast(factor, time);
    mul(factor, factor, rate);
    neg(factor, factor);
    exp(factor, factor);
    mul(d, d, factor);
  }
};

}  // namespace tkpy::hyena_filter
