// What the kernels of monarch_multiply share: products of 32 of K whose operands both come 16 bytes a lane, and the
// transposition that makes such operands of channels that are 16 bytes apart.
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::monarch {

using namespace tk;

TK_DEVICE int lane_row() { return lane_index() / 4; }     // g
TK_DEVICE int lane_chunk() { return lane_index() % 4; }   // t
TK_DEVICE uint4 nothing() { return make_uint4(0u, 0u, 0u, 0u); }

// d += a b over 32 of K: rows g and g + 8 of A, column g of B.
template <class T>
TK_DEVICE void multiply(float* d, uint4 low, uint4 high, uint4 b) {
  using form = ptx::mma_form<float, T, T>;
  const u32 first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
  ptx::mma<form>(d, first, b.x, b.y);
  ptx::mma<form>(d, second, b.z, b.w);
}

// Element j of x[i] becomes element i of x[j].
TK_DEVICE void turn(uint4 (&x)[8]) {
  const u32 in[8][4] = {{x[0].x, x[0].y, x[0].z, x[0].w}, {x[1].x, x[1].y, x[1].z, x[1].w},
                        {x[2].x, x[2].y, x[2].z, x[2].w}, {x[3].x, x[3].y, x[3].z, x[3].w},
                        {x[4].x, x[4].y, x[4].z, x[4].w}, {x[5].x, x[5].y, x[5].z, x[5].w},
                        {x[6].x, x[6].y, x[6].z, x[6].w}, {x[7].x, x[7].y, x[7].z, x[7].w}};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const u32 halves = j % 2 ? 0x7632u : 0x5410u;
    const int word = j / 2;
    x[j] = make_uint4(__byte_perm(in[0][word], in[1][word], halves), __byte_perm(in[2][word], in[3][word], halves),
                      __byte_perm(in[4][word], in[5][word], halves), __byte_perm(in[6][word], in[7][word], halves));
  }
}

}  // namespace tkpy::monarch
