// The way out of the GEMM: C = act(D + bias) + residual, from the accumulators of one warp to memory.
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::gemm {

using namespace tk;

TK_DEVICE float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu:
      return fn::gelu(x);
    case Activation::gelu_tanh:
      return fn::gelu_tanh(x);
    case Activation::silu:
      return fn::silu(x);
    case Activation::relu:
      return fn::relu(x);
    case Activation::relu_squared:
      return fn::relu_squared(x);
    default:
      return x;
  }
}

// Two neighbouring elements of a row, each only if inside; as one access where `paired` says that it is aligned.
template <class T>
TK_DEVICE void read_pair(float (&out)[2], const T* at, int inside, bool paired) {
  if (inside >= 2 && paired) {
    const u32 pair = *reinterpret_cast<const u32*>(at);
    out[0] = ptx::low<T>(pair);
    out[1] = ptx::high<T>(pair);
  } else {
    out[0] = inside >= 1 ? ptx::to_float<T>(at[0].bits) : 0.0f;
    out[1] = inside >= 2 ? ptx::to_float<T>(at[1].bits) : 0.0f;
  }
}

template <class T>
TK_DEVICE void write_pair(T* at, const float (&value)[2], int inside, bool paired) {
  const u32 pair = ptx::pack<T>(value[0], value[1]);
  if (inside >= 2 && paired) {
    *reinterpret_cast<u32*>(at) = pair;
  } else {
    if (inside >= 1) at[0].bits = static_cast<unsigned short>(pair & 0xffffu);
    if (inside >= 2) at[1].bits = static_cast<unsigned short>(pair >> 16);
  }
}

// 16 rows x 64 columns of the patch, from (row, col) of C on. A lane owns two columns, so that a warp moves 128
// contiguous bytes of a row at a time.
template <class T>
TK_DEVICE void write_rows(const float* patch, const Params& p, int row, int col) {
  const int lane_col = 2 * lane_index(), c = col + lane_col, inside = p.n - c;
  const view<T> out{static_cast<T*>(p.out), p.m, p.n, p.out_pitch};
  const view<const T> residual{static_cast<const T*>(p.residual), p.m, p.n, p.residual_pitch};
  const bool out_pairs = out.pairs(), residual_pairs = residual.pairs();
  float bias[2] = {0.0f, 0.0f};
  if (p.bias) read_pair(bias, static_cast<const T*>(p.bias) + c, inside, reinterpret_cast<u64>(p.bias) % 4 == 0);
#pragma unroll 1
  for (int r = 0; r < 16 && row + r < p.m; ++r) {
    const float2 d = *reinterpret_cast<const float2*>(patch + 64 * r + patch_col(r, lane_col));
    float value[2] = {activate(p.activation, d.x + bias[0]), activate(p.activation, d.y + bias[1])};
    if (p.residual) {
      float extra[2];
      read_pair(extra, residual.at(row + r, c), inside, residual_pairs);
      value[0] += extra[0];
      value[1] += extra[1];
    }
    write_pair(out.at(row + r, c), value, inside, out_pairs);
  }
}

// The warp's 16 rows of D go through its own patch of shared memory, 64 columns at a time: fragments in, rows out.
template <class T>
TK_DEVICE void write_out(float* patch, const rt_fl<16, kTileCols>& d, const Params& p, int row, int col) {
#pragma unroll
  for (int part = 0; part < kTileCols / 64; ++part) {
    if (row >= p.m || col + 64 * part >= p.n) return;  // the same in all lanes
    __syncwarp();                                      // the previous part has been read
#pragma unroll
    for (int e = 0; e < 32; e += 2) {
      const int r = fragment_row(lane_index(), e);
      *reinterpret_cast<float2*>(patch + 64 * r + patch_col(r, fragment_col(lane_index(), e))) =
          make_float2(d.x[0][32 * part + e], d.x[0][32 * part + e + 1]);
    }
    __syncwarp();
    write_rows<T>(patch, p, row, col + 64 * part);
  }
}

}  // namespace tkpy::gemm
