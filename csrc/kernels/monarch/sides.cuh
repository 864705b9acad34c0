// What whole.cu, half.cu and product.cu share: the side of a factor in a CTA, eight of its blocks, one a warp, through tiles
// of 32 rows.
//
// input     unit (16 bytes of shared memory): eight channels of a block in a row. Of strided blocks 16 bytes of global memory
//           are one channel of eight: matrices of eight channels by eight blocks are transposed in place
// middle    unit: eight rows of a channel, what a product over rows wants of its left side
// swizzles  input: row ^ (block ^ turned chunk ^ 2 (row / 8)) % 8; middle: channel ^ 2 (row / 8) ^ block % 2: no bank
//           conflicts where the factors are square
#pragma once

#include "monarch.cuh"

namespace tkpy::monarch {

// One side of a CTA: its blocks of a factor. Inputs and middles lie where `at` says.
struct Side {
  int blocks, out, in;  // the factor's; out and in: multiples of 16
  int first, count;     // this CTA's blocks
  u32 weights;          // an address
  TK_DEVICE Side(const Factor& f, int each, u32 memory)
      : blocks(f.blocks), out(f.out), in(f.in), first(cluster_rank() * each), count(max(0, min(each, f.blocks - first))),
        weights(memory) {}
  TK_DEVICE u32 weight_at(int block, int chunk, int o) const { return weights + 16u * ((block * (in / 8) + chunk) * out + o); }
  TK_DEVICE u32 turned_weight_at(int block, int chunk, int i) const {  // of weights [in, out]
    return weights + 16u * ((block * (out / 8) + chunk) * in + i);
  }
  TK_DEVICE u32 middle_at(u32 at, int block, int chunk, int channel) const {
    return at + 16u * ((block * (kWholeRows / 8) + chunk) * out + (channel ^ (2 * chunk + block % 2)));
  }
};
TK_DEVICE u32 input_at(u32 at, int block, int chunk, int row) {
  const int turned = row ^ ((block ^ (2 * chunk + chunk / 4) ^ 2 * (row / 8)) & 7);
  return at + 16u * ((chunk * kWarps + block) * kWholeRows + turned);
}

// Weights of this CTA's blocks, from [block, out, in].
template <class T>
TK_DEVICE void load_weights(const Side& side, const void* from) {
  const uint4* at = static_cast<const uint4*>(from) + 1ll * side.first * side.out * (side.in / 8);
  for (int i = static_cast<int>(threadIdx.x); i < side.count * side.out * (side.in / 8); i += kThreads) {
    const int chunk = i % (side.in / 8), o = i / (side.in / 8);
    ptx::st_shared_v4(side.weight_at(o / side.out, chunk, o % side.out), ptx::ld_global_v4(at + i));
  }
}

// A tile of x (consecutive blocks) or dy (strided, channels of eight blocks yet) on its way; 0 beyond the last row.
template <class T, bool Strided>
TK_DEVICE void load_rows(int rows, const Side& side, const void* data, long long pitch, int tile, u32 at) {
  const int across = Strided ? side.in : side.count * (side.in / 8);
  for (int i = static_cast<int>(threadIdx.x); i < across * kWholeRows; i += kThreads) {
    const int row = i / across, unit = i % across;
    const bool there = tile * kWholeRows + row < rows;
    const int block = Strided ? unit % 8 : unit / (side.in / 8), chunk = Strided ? unit / 8 : unit % (side.in / 8);
    const T* from = static_cast<const T*>(data);
    if (there)
      from += (1ll * tile * kWholeRows + row) * pitch +
              (Strided ? 1ll * unit * side.blocks + side.first : 1ll * side.first * side.in + 8 * unit);
    ptx::cp_async_16(input_at(at, block, chunk, row), from, there ? 16u : 0u);
  }
}

// Channels of eight blocks become blocks of eight channels: four rows a warp.
TK_DEVICE void turn_blocks(const Side& side, u32 at) {
  const int lane = lane_index();
  for (int chunk = 0; chunk < side.in / 8; ++chunk) {
    const u32 row = input_at(at, lane % 8, chunk, 4 * warp_index() + lane / 8);
    u32 x[4];
    ptx::ldmatrix_x4_trans(x, row);
    __syncwarp();  // read by all before it is written
    ptx::stmatrix_x4(row, x);
  }
}

// x = W in^T of this warp's block: channels 16m + 8 half + g, eight rows a lane, since in an instruction columns 2t and
// 2t + 1 of tile j are rows 8t + 2j and 8t + 2j + 1.
template <class T, int Tall>
TK_DEVICE void multiply_input(uint4 (&x)[Tall][2], const Side& side, u32 at) {
  using form = ptx::mma_form<float, T, T>;
  const int warp = warp_index(), which = lane_index() / 8, i = lane_index() % 8;
  float d[Tall][4][4] = {};
#pragma unroll 1
  for (int k = 0; k < side.in / 16; ++k) {
    u32 b[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j)
      ptx::ldmatrix_x4(b[j], input_at(at, warp, 2 * k + which % 2, 8 * (i / 2) + 4 * j + 2 * (which / 2) + i % 2));
#pragma unroll
    for (int m = 0; m < Tall; ++m) {
      if (16 * m >= side.out) break;
      u32 a[4];
      ptx::ldmatrix_x4(a, side.weight_at(warp, 2 * k + which / 2, 16 * m + 8 * (which % 2) + i));
#pragma unroll
      for (int j = 0; j < 4; ++j) ptx::mma<form>(d[m][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int m = 0; m < Tall; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto pair = [&](int j) { return ptx::pack<T>(d[m][j][2 * half], d[m][j][2 * half + 1]); };
      x[m][half] = make_uint4(pair(0), pair(1), pair(2), pair(3));
    }
}

// Every channel of x goes, eight rows a lane, where place(channel, chunk of rows) says.
template <int Tall, class Place>
TK_DEVICE void send(const uint4 (&x)[Tall][2], const Side& side, Place place) {
#pragma unroll
  for (int m = 0; m < Tall; ++m)
    if (16 * m < side.out)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        ptx::st_cluster_v4(place(16 * m + 8 * half + lane_row(), lane_chunk()), x[m][half]);
}

// sums += middle^T in of this warp's block.
template <class T, int Tall>
TK_DEVICE void add_gradient(float (&sums)[Tall][2 * Tall][4], const Side& side, u32 middle, u32 at) {
  using form = ptx::mma_form<float, T, T>;
  const int warp = warp_index(), which = lane_index() / 8, i = lane_index() % 8;
  u32 a[Tall][2][4];
#pragma unroll
  for (int m = 0; m < Tall; ++m)
    if (16 * m < side.out)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        ptx::ldmatrix_x4(a[m][k], side.middle_at(middle, warp, 2 * k + which / 2, 16 * m + 8 * (which % 2) + i));
#pragma unroll
  for (int n = 0; n < 2 * Tall; ++n) {
    if (8 * n >= side.in) break;
    u32 b[4];
    ptx::ldmatrix_x4_trans(b, input_at(at, warp, n, lane_index()));
#pragma unroll
    for (int m = 0; m < Tall; ++m)
      if (16 * m < side.out) {
        ptx::mma<form>(sums[m][n], a[m][0], b[0], b[1]);
        ptx::mma<form>(sums[m][n], a[m][1], b[2], b[3]);
      }
  }
}

// W^T middle of this warp's block, rows by channels, in the place of its input. W [out, in] as the side has it, or [in, out]:
// `Turned`.
template <class T, int Tall, bool Turned>
TK_DEVICE void multiply_middle(const Side& side, u32 middle, u32 at) {
  using form = ptx::mma_form<float, T, T>;
  const int warp = warp_index(), which = lane_index() / 8, i = lane_index() % 8;
#pragma unroll 1
  for (int m = 0; m < kWholeRows / 16; ++m) {
    float d[2 * Tall][4] = {};
#pragma unroll 1
    for (int k = 0; k < side.out / 16; ++k) {
      u32 a[4];
      ptx::ldmatrix_x4_trans(a, side.middle_at(middle, warp, 2 * m + which % 2, 16 * k + 8 * (which / 2) + i));
#pragma unroll
      for (int n = 0; n < 2 * Tall; n += 2) {
        if (8 * n >= side.in) break;
        u32 b[4];
        if (Turned)
          ptx::ldmatrix_x4(b, side.turned_weight_at(warp, 2 * k + which % 2, 8 * (n + which / 2) + i));
        else
          ptx::ldmatrix_x4_trans(b, side.weight_at(warp, n + which / 2, 16 * k + 8 * (which % 2) + i));
        ptx::mma<form>(d[n], a, b[0], b[1]);
        ptx::mma<form>(d[n + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * Tall; n += 2) {
      if (8 * n >= side.in) break;
      const u32 words[4] = {ptx::pack<T>(d[n][0], d[n][1]), ptx::pack<T>(d[n][2], d[n][3]),
                            ptx::pack<T>(d[n + 1][0], d[n + 1][1]), ptx::pack<T>(d[n + 1][2], d[n + 1][3])};
      ptx::stmatrix_x4(input_at(at, warp, n + which / 2, 16 * m + 8 * (which % 2) + i), words);
    }
  }
}

// This warp's block of dx, from the place of x.
template <class T>
TK_DEVICE void store_block(const Whole& p, const Side& side, int tile, u32 at) {
  const int chunks = side.in / 8, warp = warp_index();
  T* to = static_cast<T*>(p.dx) + 1ll * (side.first + warp) * side.in;
  for (int i = lane_index(); i < chunks * kWholeRows; i += 32) {
    const int chunk = i % chunks, row = i / chunks, of_dx = tile * kWholeRows + row;
    if (of_dx < p.rows)
      ptx::st_global_v4(to + 1ll * of_dx * side.blocks * side.in + 8 * chunk, ptx::ld_shared_v4(input_at(at, warp, chunk, row)));
  }
}

// This warp's block of the cluster's share.
template <int Tall>
TK_DEVICE void store_sums(const float (&sums)[Tall][2 * Tall][4], const Side& side, float* shares, int share) {
  if (warp_index() >= side.count) return;
  float* to = shares + (1ll * share * side.blocks + side.first + warp_index()) * side.out * side.in;
#pragma unroll
  for (int m = 0; m < Tall; ++m)
#pragma unroll
    for (int n = 0; n < 2 * Tall; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (16 * m < side.out && 8 * n < side.in)
          *reinterpret_cast<float2*>(to + (16 * m + 8 * half + lane_row()) * side.in + 8 * n + 2 * lane_chunk()) =
              make_float2(sums[m][n][2 * half], sums[m][n][2 * half + 1]);
}

// Where channel `channel` of this warp's block goes, eight rows of it: h to a granule of strided blocks, dh to a consecutive block.
struct Places {
  const Side &first, &second;
  int each;  // consecutive blocks of a CTA
  TK_DEVICE u32 of_h(u32 at, int channel, int chunk) const {
    const int flat = (first.first + warp_index()) * first.out + channel, block = flat % second.blocks;
    return ptx::mapa(second.middle_at(at, block % 8, chunk, flat / second.blocks), static_cast<u32>(block / 8));
  }
  TK_DEVICE u32 of_dh(u32 at, int channel, int chunk) const {
    const int flat = channel * second.blocks + second.first + warp_index(), block = flat / first.out;
    return ptx::mapa(first.middle_at(at, block % each, chunk, flat % first.out), static_cast<u32>(block / each));
  }
};

}  // namespace tkpy::monarch
