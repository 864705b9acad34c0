// The values of a block, turned: wgmma of 8-bit types reads B with K, the keys, along its rows (PTX ISA 9.7.15.5.1), and the
// caller's v has them down its columns. ldmatrix.trans turns pairs of bytes, byte_perm the bytes in them:
//   a lane gets, of columns d = 2 c and 2 c + 1 (c = lane / 4), keys 2 t, 2 t + 1 of each 8 (t = lane % 4)
// A word of a row of v^T is made of keys 2 t, 2 t + 1, 8 + 2 t, 9 + 2 t: the four that lie beside each other in the fragment of
// P that an accumulator of scores becomes. A product's sum may run in any order, so that order stays (`order_of_keys`).
#pragma once

#include "tk/tk.cuh"

namespace tkpy::attention_fp8 {

using namespace tk;

// Keys from `valid` on become zeros: they are another sequence's, and 0 * NaN is NaN. `pairs` begin at key `key`.
TK_DEVICE void keep_valid(u32 (&pairs)[4], int key, int valid) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int left = valid - key - 8 * i - 2 * (lane_index() % 4);  // of the word's two keys
    pairs[i] &= left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0u;
  }
}

// 16 columns and 64 keys: a warp, 32 keys at a time. Matrices of even and odd rows of v^T change places half way, so that
// the eight rows of one lie in different banks.
template <bool Ragged, class VTile, class Turned>
TK_DEVICE void turn_part(Turned& to, const VTile& v, int key, int col, int valid) {
  const bool low = lane_index() < 16;
  const u32 even = low ? 0x6420u : 0x7531u, odd = low ? 0x7531u : 0x6420u;
  const int matrix = lane_index() / 8, c = lane_index() % 8, swap = (c >= 4) != (matrix % 2 == 1);
  const u32 from = v.address(key + lane_index(), col), into = to.address(col + 2 * c + swap, key + 16 * (matrix / 2));
  static_assert(Turned::swizzle == 128, "the next 32 keys are found by an exclusive or within a row of 128 bytes");
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    u32 pairs[4], words[4];
    ptx::ldmatrix_x4_trans(pairs, from + 32 * i * VTile::swizzle);
    if constexpr (Ragged) keep_valid(pairs, key + 32 * i, valid);
    words[0] = __byte_perm(pairs[0], pairs[1], even);
    words[1] = __byte_perm(pairs[0], pairs[1], odd);
    words[2] = __byte_perm(pairs[2], pairs[3], even);
    words[3] = __byte_perm(pairs[2], pairs[3], odd);
    ptx::stmatrix_x4(into ^ 32 * i, words);
  }
}

// A whole block, of which the first `valid` keys count, shared by `warps` warps.
template <class VTile, class Turned>
TK_DEVICE void turn(Turned& to, const VTile& v, int warp, int warps, int valid) {
  constexpr int columns = VTile::cols / 16, parts = columns * (VTile::rows / 64);
  if (valid < VTile::rows) {
#pragma unroll 1
    for (int i = warp; i < parts; i += warps) turn_part<true>(to, v, 64 * (i / columns), 16 * (i % columns), valid);
  } else {
#pragma unroll 1
    for (int i = warp; i < parts; i += warps) turn_part<false>(to, v, 64 * (i / columns), 16 * (i % columns), valid);
  }
}

// P as an operand, keys in the order of `turn`.
template <int Keys>
TK_DEVICE void order_of_keys(rt_e4m3<16, Keys>& weights, const rt_fl<16, Keys>& p) {
#pragma unroll
  for (int i = 0; i < Keys / 16; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float *first = &p.x[0][8 * i + 2 * half], *second = first + 4;
      weights.x[0][2 * i + half] =
          __byte_perm(ptx::pack<e4m3>(first[0], first[1]), ptx::pack<e4m3>(second[0], second[1]), 0x5410);
    }
}

}  // namespace tkpy::attention_fp8
