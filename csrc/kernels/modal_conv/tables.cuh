// What depends on poles and residues only, made by each CTA (a warp) for itself in shared memory: powers of the poles in
// double, from them the operands of the products as fragments (a lane's four words side by side), cut into pieces of bf16.
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::modal_conv {

using namespace tk;

TK_DEVICE float2 operator*(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
TK_DEVICE float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
// a b + c
TK_DEVICE float2 madd(float2 a, float2 b, float2 c) {
  return make_float2(fmaf(a.x, b.x, fmaf(-a.y, b.y, c.x)), fmaf(a.x, b.y, fmaf(a.y, b.x, c.y)));
}
TK_DEVICE double2 operator*(double2 a, double2 b) { return make_double2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
TK_DEVICE double2 operator+(double2 a, double2 b) { return make_double2(a.x + b.x, a.y + b.y); }
TK_DEVICE float2 narrow(double2 a) { return make_float2(static_cast<float>(a.x), static_cast<float>(a.y)); }
TK_DEVICE double2 wide(float2 a) { return make_double2(a.x, a.y); }
TK_DEVICE float2 conj(float2 a) { return make_float2(a.x, -a.y); }
TK_DEVICE float2 shuffle(float2 a, int lane) {
  return make_float2(__shfl_sync(0xffffffffu, a.x, lane), __shfl_sync(0xffffffffu, a.y, lane));
}

// base^n, n >= 0.
TK_DEVICE double2 power(double2 base, int n) {
  double2 result = make_double2(1.0, 0.0);
#pragma unroll 1
  for (; n; n >>= 1) {
    if (n & 1) result = result * base;
    base = base * base;
  }
  return result;
}

// Operands of 16 x 16 in pieces: fragment[piece][lane].
template <int Parts>
struct Fragments {
  uint4 piece[Parts][32];
};

// x = the sum of its pieces, each rounded to bf16.
template <int Parts, int Rows, int Cols, Layout L>
TK_DEVICE void cut(rt<bf16, Rows, Cols, L> (&piece)[Parts], rt<float, Rows, Cols, L> x) {
#pragma unroll
  for (int i = 0; i < Parts; ++i) {
    copy(piece[i], x);
    if (i + 1 < Parts) sub(x, x, piece[i]);
  }
}

using Block = rt<float, 16, 16, Layout::col>;  // the right operand of a product
using BlockPiece = rt<bf16, 16, 16, Layout::col>;

// The block whose element (row, col) is f(row, col).
template <int Parts, class F>
TK_DEVICE void keep(Fragments<Parts>& to, F f) {
  Block block;
  zero(block);
  map_at(block, block, [&](int row, int col, float) { return f(row, col); });
  BlockPiece piece[Parts];
  cut(piece, block);
#pragma unroll
  for (int i = 0; i < Parts; ++i)
    to.piece[i][lane_index()] = make_uint4(piece[i].x[0][0], piece[i].x[0][1], piece[i].x[0][2], piece[i].x[0][3]);
}

template <int Parts>
TK_DEVICE void load(BlockPiece (&dst)[Parts], const Fragments<Parts>& src) {
#pragma unroll
  for (int j = 0; j < Parts; ++j) {
    const uint4 words = ptx::ld_shared_v4(ptx::shared_address(&src.piece[j][lane_index()]));
    dst[j].x[0][0] = words.x, dst[j].x[0][1] = words.y, dst[j].x[0][2] = words.z, dst[j].x[0][3] = words.w;
  }
}
TK_DEVICE float4 load(const float4& src) {
  const uint4 x = ptx::ld_shared_v4(ptx::shared_address(&src));
  return make_float4(__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w));
}

// d += a b, up to the products of two small pieces.
template <int Parts>
TK_DEVICE void multiply(rt_fl<16, 16>& d, const rt_bf<16, 16> (&a)[Parts], const BlockPiece (&b)[Parts]) {
#pragma unroll
  for (int j = 0; j < Parts; ++j)
#pragma unroll
    for (int i = 0; i + j < Parts; ++i) mma_AB(d, a[i], b[j]);
}

// Powers p^0 .. p^16 of a group's poles, its residues and (all groups') taps, in memory that is used for signals later.
struct Powers {
  float2 of[kGroup][kBlock + 1], residue[kGroup];
  float h[kBlock];
};

// Factors q^n, q = p^64, of a group's modes over chunks; the states that are carried from tile to tile, and over a tile.
struct Strides {
  float4 q[8][4];        // [n][lane % 4] q^n of modes lane % 4 and lane % 4 + 4
  float4 half[4];        // q^8 of both
  double2 tile[kGroup];  // q^16
  double2 carry[kGroup];
};
static_assert(sizeof(Strides) == kStrides && sizeof(Fragments<2>) == 2 * kFragment, "as in params.h");

TK_DEVICE float2 load(const Complex* x, long long at, bool exists) {
  return exists ? make_float2(x[at].re, x[at].im) : make_float2(0.0f, 0.0f);
}

// Powers and strides of one mode; `reach` becomes p^lane.
TK_DEVICE void raise(Powers& powers, Strides& strides, int mode, double2 pole, double2& reach) {
  const int lane = lane_index(), n = lane / 4;
  double2 square = pole;
  reach = make_double2(1.0, 0.0);
#pragma unroll
  for (int bit = 0; bit < 5; ++bit) {
    if (lane >> bit & 1) reach = reach * square;
    square = square * square;
  }
  const double2 q = square * square, q2 = q * q, q4 = q2 * q2, q8 = q4 * q4;
  double2 factor = make_double2(1.0, 0.0);
  if (n & 1) factor = q;
  if (n & 2) factor = factor * q2;
  if (n & 4) factor = factor * q4;
  if (lane <= kBlock) powers.of[mode][lane] = narrow(reach);
  if (lane % 4 == mode % 4) reinterpret_cast<float2*>(&strides.q[n][lane % 4])[mode / 4] = narrow(factor);
  if (lane == 0) {
    reinterpret_cast<float2*>(&strides.half[mode % 4])[mode / 4] = narrow(q8);
    strides.tile[mode] = q8 * q8;
  }
}

TK_DEVICE float2 mode_of(float4 both, int m) { return m == 0 ? make_float2(both.x, both.y) : make_float2(both.z, both.w); }

// c (chunks x modes: what each chunk adds) becomes the state that each chunk finds, x' = q x + c from `carry` on, down
// the rows or (Reverse) up; `carry` becomes what the next tile finds. A lane has chunks g and g + 8 of two modes.
// first: rows before this one (counted in the direction) do not exist, and the carry enters at it.
template <bool Reverse>
TK_DEVICE void scan(rt_fl<16, 16>& c, Strides& strides, int first) {
  const int lane = lane_index(), t = lane % 4, g = Reverse ? 7 - lane / 4 : lane / 4;
  const int last = Reverse ? t : 28 + t;  // the lane of this mode's last row
  float4 q[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) q[i] = load(strides.q[1 << i][t]);
  const float4 half_way = load(strides.half[t]), place = load(strides.q[g][t]);
  double2 next[2];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int at[2] = {4 * m + (Reverse ? 2 : 0), 4 * m + (Reverse ? 0 : 2)};  // the halves of the rows, in order
    double2 carry = strides.carry[t + 4 * m];
    float2 given[2], x[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      given[half] = make_float2(c.x[0][at[half]], c.x[0][at[half] + 1]);
      if (first > 0 && g + 8 * half == first - 1) given[half] = narrow(carry);
    }
    if (first > 0) carry = make_double2(0.0, 0.0);
    const float2 start = narrow(carry);
    const auto before = [&](float2 v, int rows) { return shuffle(v, (lane + (Reverse ? 4 : -4) * rows) & 31); };
    const float2 middle = shuffle(given[0], last);
    x[0] = before(given[0], 1);
    x[1] = before(given[1], 1);
    if (g == 0) {
      x[0] = make_float2(0.0f, 0.0f);
      x[1] = middle;
    }
#pragma unroll
    for (int i = 0; i < 3; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 other = before(x[half], 1 << i);
        if (g >= 1 << i) x[half] = madd(mode_of(q[i], m), other, x[half]);
      }
    const float2 one = mode_of(q[0], m), here = mode_of(place, m), joined = one * shuffle(x[0], last);
    const float2 added = madd(one, madd(here, joined, x[1]), given[1]);  // in the last row: by the whole tile
    next[m] = strides.tile[t + 4 * m] * carry + wide(added);
    x[0] = madd(here, start, x[0]);
    x[1] = madd(here, madd(mode_of(half_way, m), start, joined), x[1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      c.x[0][at[half]] = x[half].x;
      c.x[0][at[half] + 1] = x[half].y;
    }
  }
  __syncwarp();
  if (g == 7) strides.carry[t] = next[0], strides.carry[t + 4] = next[1];
  __syncwarp();
}

}  // namespace tkpy::modal_conv
