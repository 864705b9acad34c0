// The way out of the GEMM: C = act(D + bias) + residual, from the accumulators of one warp to memory.
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::gemm {

using namespace tk;

// A piece of work of a CTA: 128 rows (from `row` on) x 256 columns of C of one group, over `steps` steps of K; of a
// gated kernel 128 columns, each of a gate and a value.
struct Tile {
  int row, col, group, share, first, steps;
};

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

// Where column `col` of a group lies in a row of x.
TK_DEVICE long long place(const Blocks& x, const Params& p, int group, int col) {
  const long long f = group * x.block + static_cast<long long>(col) * x.step;
  if (!x.shuffled) return f;
  return static_cast<int>(f) % p.groups * x.block + static_cast<int>(f) / p.groups;
}

// Two neighbouring columns of a group of C: where they lie in a row, and which of them exist.
struct Pair {
  long long at[2];
  bool in[2];
  TK_DEVICE Pair(const Params& p, int group, int col)
      : at{place(p.out, p, group, col), place(p.out, p, group, col + 1)},
        in{col < p.n && at[0] < p.out.end, col + 1 < p.n && at[1] < p.out.end} {}
  // Whether both move as one access in every row.
  template <class T>
  TK_DEVICE bool joined(const T* data, long long pitch) const {
    return in[0] && in[1] && at[1] == at[0] + 1 && pitch % 2 == 0 &&
           reinterpret_cast<u64>(data + at[0]) % (2 * sizeof(T)) == 0;
  }
};

template <class T>
TK_DEVICE void read_pair(float (&out)[2], const T* row, const Pair& pair, bool joined) {
  if (joined) {
    const u32 both = *reinterpret_cast<const u32*>(row + pair.at[0]);
    out[0] = ptx::low<T>(both);
    out[1] = ptx::high<T>(both);
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) out[i] = pair.in[i] ? ptx::to_float<T>(row[pair.at[i]].bits) : 0.0f;
  }
}

template <class T>
TK_DEVICE void write_pair(T* row, const float (&value)[2], const Pair& pair, bool joined) {
  const u32 both = ptx::pack<T>(value[0], value[1]);
  if (joined) {
    *reinterpret_cast<u32*>(row + pair.at[0]) = both;
  } else {
    if (pair.in[0]) row[pair.at[0]].bits = static_cast<unsigned short>(both & 0xffffu);
    if (pair.in[1]) row[pair.at[1]].bits = static_cast<unsigned short>(both >> 16);
  }
}

TK_DEVICE float2 patched(const float* patch, int row, int col) {
  return *reinterpret_cast<const float2*>(patch + 64 * row + patch_col(row, col));
}

// 16 rows x 64 columns of the patch, from (row, col) of the tile's group on. A lane owns two columns, so that a warp
// moves 128 contiguous bytes of a row at a time.
template <class T>
TK_DEVICE void write_rows(const float* patch, const Params& p, const Tile& tile, int row, int col) {
  const int lane_col = 2 * lane_index();
  const Pair pair(p, tile.group, col + lane_col);
  T* const out = static_cast<T*>(p.out.data);
  const T* const residual = static_cast<const T*>(p.residual);
  const bool out_joined = pair.joined(out, p.out.pitch), residual_joined = pair.joined(residual, p.residual_pitch);
  float bias[2] = {0.0f, 0.0f};
  if (p.bias) read_pair(bias, static_cast<const T*>(p.bias), pair, false);
#pragma unroll 1
  for (int r = 0; r < 16 && row + r < p.m; ++r) {
    const float2 d = patched(patch, r, lane_col);
    float value[2] = {activate(p.activation, d.x + bias[0]), activate(p.activation, d.y + bias[1])};
    if (residual) {
      float extra[2];
      read_pair(extra, residual + (row + r) * p.residual_pitch, pair, residual_joined);
      value[0] += extra[0];
      value[1] += extra[1];
    }
    write_pair(out + (row + r) * p.out.pitch, value, pair, out_joined);
  }
}

// The same for a share of the sums, in fp32.
TK_DEVICE void write_sums(const float* patch, const Params& p, const Tile& tile, int row, int col) {
  const int lane_col = 2 * lane_index();
  const Pair pair(p, tile.group, col + lane_col);
  float* const out = static_cast<float*>(p.out.data) + tile.share * p.out_share;
  const bool joined = pair.joined(out, p.out.pitch);
#pragma unroll 1
  for (int r = 0; r < 16 && row + r < p.m; ++r) {
    const float2 d = patched(patch, r, lane_col);
    float* const at = out + (row + r) * p.out.pitch;
    if (joined) {
      *reinterpret_cast<float2*>(at + pair.at[0]) = d;
    } else {
      if (pair.in[0]) at[pair.at[0]] = d.x;
      if (pair.in[1]) at[pair.at[1]] = d.y;
    }
  }
}

// C = act(gate) * value from a patch of 32 columns of both, and both themselves; each where it has an address. Half a
// warp moves 64 contiguous bytes of a row at a time.
template <class T>
TK_DEVICE void write_gated_rows(const float* patch, const Params& p, const Tile& tile, int row, int col) {
  const int lane_col = 2 * (lane_index() % 16), half = lane_index() / 16;
  const Pair pair(p, tile.group, col + lane_col);
  T* const out = static_cast<T*>(p.out.data);
  T* const kept_gate = static_cast<T*>(p.kept.gate);
  T* const kept_value = static_cast<T*>(p.kept.value);
  const bool joined = pair.joined(out, p.out.pitch);
  const bool kept_joined = pair.joined(kept_gate, p.kept.pitch) && pair.joined(kept_value, p.kept.pitch);
#pragma unroll 1
  for (int r = half; r < 16 && row + r < p.m; r += 2) {
    const float2 gate = patched(patch, r, lane_col), value = patched(patch, r, 32 + lane_col);
    if (out) {
      const float h[2] = {activate(p.activation, gate.x) * value.x, activate(p.activation, gate.y) * value.y};
      write_pair(out + (row + r) * p.out.pitch, h, pair, joined);
    }
    if (kept_gate) {
      const long long at = (row + r) * p.kept.pitch;
      write_pair(kept_gate + at, {gate.x, gate.y}, pair, kept_joined);
      write_pair(kept_value + at, {value.x, value.y}, pair, kept_joined);
    }
  }
}

// Columns first .. first + Cols - 1 of the warp's 16 rows of D, to columns `to` .. of its patch.
template <int Cols, int Whole>
TK_DEVICE void to_patch(float* patch, const rt_fl<16, Whole>& d, int first, int to) {
#pragma unroll
  for (int e = 0; e < Cols / 2; e += 2) {
    const int r = fragment_row(lane_index(), e), c = to + fragment_col(lane_index(), e);
    *reinterpret_cast<float2*>(patch + 64 * r + patch_col(r, c)) =
        make_float2(d.x[0][first / 2 + e], d.x[0][first / 2 + e + 1]);
  }
}

// The warp's 16 rows of D go through its own patch of shared memory, 64 columns at a time: fragments in, rows out.
template <class T>
TK_DEVICE void write_out(float* patch, const rt_fl<16, kTileCols>& d, const Params& p, const Tile& tile, int row) {
#pragma unroll
  for (int part = 0; part < kTileCols / 64; ++part) {
    const int col = tile.col + 64 * part;
    if (row >= p.m || col >= p.n) return;  // the same in all lanes
    __syncwarp();                          // the previous part has been read
    to_patch<64>(patch, d, 64 * part, 0);
    __syncwarp();
    if (p.out_float)
      write_sums(patch, p, tile, row, col);
    else
      write_rows<T>(patch, p, tile, row, col);
  }
}

// The same of a gate and its value, 32 columns of each at a time.
template <class T>
TK_DEVICE void write_gated(float* patch, const rt_fl<16, kTileCols / 2>& gate, const rt_fl<16, kTileCols / 2>& value,
                           const Params& p, const Tile& tile, int row) {
#pragma unroll
  for (int part = 0; part < kTileCols / 64; ++part) {
    const int col = tile.col + 32 * part;
    if (row >= p.m || col >= p.n) return;
    __syncwarp();
    to_patch<32>(patch, gate, 32 * part, 0);
    to_patch<32>(patch, value, 32 * part, 32);
    __syncwarp();
    write_gated_rows<T>(patch, p, tile, row, col);
  }
}

}  // namespace tkpy::gemm
