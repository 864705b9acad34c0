// The way out of a gated product's backward: dh = D through the gate h = act(g) v, whose g and v were kept.
//   dg = dh v act'(g), dv = dh act(g), h = act(g) v      all three in one pass, so that dh never goes to memory
// bytes  g and v read, dg, dv and h written: 5 x 2 a column of D. A lane moves four columns, 8 bytes, half a warp 128
//        contiguous bytes of a row; eight rows of g and v are on their way while the eight before are computed
#pragma once

#include "epilogue.cuh"

namespace tkpy::gemm {

struct Opened {
  float open, slope;  // act(g), act'(g)
};

// fp16 products that overflowed to -inf are as shut as -65504 is; gelu_tanh's slope has its square to fear above too.
TK_DEVICE Opened opened(Activation activation, float g) {
  constexpr float most = 65504.0f;
  g = g < -most ? -most : g;
  switch (activation) {
    case Activation::gelu: {
      const float below = 0.5f * (1.0f + fn::erf(0.70710678f * g));  // g's normal distribution, then its density
      return {g * below, fmaf(g, 0.39894228f * fn::exp(-0.5f * g * g), below)};
    }
    case Activation::gelu_tanh: {  // g s(u), u = 2 sqrt(2 / pi) (g + 0.044715 g^3), s the sigmoid
      const float z = g > most ? most : g, square = z * z;
      const float s = fn::sigmoid(1.59576912f * z * fmaf(0.044715f, square, 1.0f));
      return {g * s, fmaf(z * s * (1.0f - s), 1.59576912f * fmaf(0.134145f, square, 1.0f), s)};
    }
    case Activation::silu: {
      const float s = fn::sigmoid(g);
      return {g * s, fmaf(g * s, 1.0f - s, s)};
    }
    default:
      return {fn::relu(g), g <= 0.0f ? 0.0f : 1.0f};
  }
}

// Four neighbouring columns of a row, of which the first `count` exist; by one access where all do and `joined` holds.
template <class T>
TK_DEVICE uint2 read_four(const T* at, int count, bool joined) {
  if (joined) return *reinterpret_cast<const uint2*>(at);
  u32 word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = i < count ? at[i].bits : 0u;
  return {word[0] | word[1] << 16, word[2] | word[3] << 16};
}
template <class T>
TK_DEVICE void write_four(T* at, const float (&value)[4], int count, bool joined) {
  const u32 word[2] = {ptx::pack<T>(value[0], value[1]), ptx::pack<T>(value[2], value[3])};
  if (joined) {
    *reinterpret_cast<uint2*>(at) = {word[0], word[1]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) at[i].bits = static_cast<unsigned short>(word[i / 2] >> (i % 2 * 16));
}

// What a lane reads ahead: four columns of four rows, every other one of eight.
struct Ahead {
  uint2 gate[4], value[4];
};

// A lane's place in a piece of the warp's 16 rows of D: columns 64 (piece / 2) .. + 63 of the tile, eight rows.
struct Place {
  int row, count;  // of C: the first of its rows, which are two apart; how many of its four columns exist
  long long at;    // of its first column
  bool joined;
  TK_DEVICE Place(const Params& p, const Tile& tile, int first_row, int piece) {
    const int col = tile.col + 64 * (piece / 2) + 4 * (lane_index() % 16);
    row = first_row + 8 * (piece % 2) + lane_index() / 16;
    at = tile.group * p.out.block + col;
    const long long left = p.out.end - at;
    count = max(0, min(p.n - col, left < 4 ? static_cast<int>(left) : 4));
    joined = p.kept.fours && count >= 4;
  }
};

template <class T>
TK_DEVICE void read_ahead(Ahead& to, const Params& p, const Place& place) {
  const T* const gate = static_cast<const T*>(p.kept.gate);
  const T* const value = static_cast<const T*>(p.kept.value);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (place.row + 2 * i >= p.m || place.count <= 0) continue;
    const long long at = (place.row + 2 * i) * p.kept.pitch + place.at;
    to.gate[i] = read_four(gate + at, place.count, place.joined);
    to.value[i] = read_four(value + at, place.count, place.joined);
  }
}

// dg, dv and h of a piece, from dh in the patch.
template <class T>
TK_DEVICE void write_piece(const float* patch, const Ahead& kept, const Params& p, const Place& place, int patch_row) {
  T* const dgate = static_cast<T*>(p.kept.dgate);
  T* const dvalue = static_cast<T*>(p.kept.dvalue);
  T* const out = static_cast<T*>(p.out.data);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = place.row + 2 * i, r = patch_row + 2 * i;
    if (row >= p.m || place.count <= 0) continue;
    const float4 d = *reinterpret_cast<const float4*>(patch + 64 * r + patch_col(r, 4 * (lane_index() % 16)));
    const float dh[4] = {d.x, d.y, d.z, d.w};
    const u32 gates[2] = {kept.gate[i].x, kept.gate[i].y}, values[2] = {kept.value[i].x, kept.value[i].y};
    float dg[4], dv[4], h[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const u32 gate = gates[c / 2], value = values[c / 2];
      const float v = c % 2 ? ptx::high<T>(value) : ptx::low<T>(value);
      const Opened o = opened(p.activation, c % 2 ? ptx::high<T>(gate) : ptx::low<T>(gate));
      dg[c] = dh[c] * v * o.slope;
      dv[c] = dh[c] * o.open;
      h[c] = o.open * v;
    }
    if (dgate) {
      const long long at = row * p.kept.slopes_pitch + place.at;
      write_four(dgate + at, dg, place.count, place.joined);
      write_four(dvalue + at, dv, place.count, place.joined);
    }
    if (out) write_four(out + row * p.out.pitch + place.at, h, place.count, place.joined);
  }
}

// The warp's 16 rows of D, 64 columns at a time through its patch, eight rows of those at a time.
template <class T>
TK_DEVICE void write_slopes(float* patch, const rt_fl<16, kTileCols>& d, const Params& p, const Tile& tile, int row) {
  Ahead kept, next;
  read_ahead<T>(next, p, Place(p, tile, row, 0));
#pragma unroll 1
  for (int piece = 0; piece < kTileCols / 32; ++piece) {
    if (row >= p.m || tile.col + 64 * (piece / 2) >= p.n) return;  // the same in all lanes
    kept = next;
    if (piece + 1 < kTileCols / 32) read_ahead<T>(next, p, Place(p, tile, row, piece + 1));
    if (piece % 2 == 0) {
      __syncwarp();  // the columns before have been read
      switch (piece / 2) {  // registers have no index
        case 0:
          to_patch<64>(patch, d, 0, 0);
          break;
        case 1:
          to_patch<64>(patch, d, 64, 0);
          break;
        case 2:
          to_patch<64>(patch, d, 128, 0);
          break;
        default:
          to_patch<64>(patch, d, 192, 0);
      }
      __syncwarp();
    }
    write_piece<T>(patch, kept, p, Place(p, tile, row, piece), 8 * (piece % 2) + lane_index() / 16);
  }
}

}  // namespace tkpy::gemm
