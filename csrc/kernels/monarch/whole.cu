// The whole backward of monarch_multiply in one launch, for blocks that are small enough: x and dy come once, dx and both
// factors' gradients leave; h and dh never see global memory.
//
// first     h[k, q] = sum_p w1[k, q, p] x[k, p]           dw1[k, q, p] = sum over rows of dh[k, q] x[k, p]
// second    dh[r, l] = sum_s w2[l, s, r] dy[s, l]         dw2[l, s, r] = sum over rows of dy[s, l] h[r, l]
//           dx[k, p] = sum_q w1[k, q, p] dh[k, q]         h flat is h[r, l], dh flat is dh[k, q]
//
// Both factors do the same with exchanged sides, and so they share code: a side takes its input (x; dy) through its weights
// (w1; w2 transposed) to the middle of the other side (h; dh), then adds middle^T input to its sums (dw1; dw2 transposed).
// A cluster of l / 8 CTAs holds all sums of n = k q channels, 2 n^1.5 of them where the factors are square. A CTA has eight
// strided blocks and k / ranks <= 8 consecutive ones; a warp has one of each: its sums stay in its registers for all of the
// cluster's tiles of 32 rows, the weights in shared memory, the middles cross to the CTA that owns the block.
//
//   x, dy (global) --cp.async--> in [2 stages] --weights--> h, dh --16 bytes, eight rows of a channel--> middle of the owner
//   middle^T in --> sums (registers) --once, at the end--> share of the cluster (global)      dh w1 --> in --> dx (global)
//
// in        unit (16 bytes): eight channels of a block in a row. Of dy 16 bytes of global memory are one channel of eight
//           blocks: matrices of eight channels by eight blocks are transposed in place. middle: eight rows of a channel
// swizzles  in: row ^ (block ^ 2 chunk ^ 2 (row / 8)) % 8; middle: channel ^ 2 (row / 8) ^ block % 2: no bank conflicts where
//           the factors are square
// barriers  __syncthreads twice a tile: it has landed, and the other stage is free, which the next tile then flies into; dy is
//           transposed. The cluster twice: its middles are free (arrive after the last read, wait before the first write of
//           the next tile; at first: the CTA has begun); all middles are there
// precision products exact, sums fp32, h, dh, dx rounded once as in the forward; sums and order do not depend on timing
// limits    p, q, r, s 16, 32 or 48 (the kernel's name bounds them), l a multiple of 8 up to 64, k <= l, k q = l r; 16-byte
//           aligned rows; shared memory: whole_side, at most 216 KB
// cost      bytes: x, dy, dx once, 6 n a row, and a share of 8 n^1.5 bytes a cluster, which torch reads again: a share is as
//           much as 1.33 sqrt(n) rows. flops: five products where four count, 10 n^1.5 a row: h is computed again, since
//           to keep it is n elements more to write and n to read, a third of all that moves, and 48 flops a byte
//           (sqrt(n) = 32) are far below what the tensor cores do
// why not   sqrt(n) = 64: sums 2.1 MB and the weights of both factors 1 MB: of a cluster's eight CTAs each would
//           hold 262 KB of sums, as much as all of its registers, and 131 KB of weights; registers and shared memory are 483 KB,
//           and what is left, 90 KB, must hold the threads' own registers (64 of 256 threads: 65 KB) and 32 rows of x, dy, h, dh,
//           twice x and dy (196 KB). Weights from L2 would be 196 KB for 96 KB of x, dy and dx
#include "monarch.cuh"

namespace tkpy::monarch {

// One side of a CTA: its blocks of a factor, their weights, inputs and middles in shared memory.
struct Side {
  int blocks, out, in;            // the factor's; a multiple of 16 each
  int first, count;               // this CTA's blocks
  u32 weights, input, middle;     // addresses
  TK_DEVICE Side(const Factor& f, int each, u32 memory)
      : blocks(f.blocks), out(f.out), in(f.in), first(cluster_rank() * each), count(max(0, min(each, f.blocks - first))),
        weights(memory), input(memory + static_cast<u32>(whole_weights(f))),
        middle(input + static_cast<u32>(kWholeStages * whole_rows(f.in))) {}
  TK_DEVICE u32 weight_at(int block, int chunk, int o) const { return weights + 16u * ((block * (in / 8) + chunk) * out + o); }
  TK_DEVICE u32 input_at(int stage, int block, int chunk, int row) const {
    const int turned = row ^ ((block ^ 2 * chunk ^ 2 * (row / 8)) & 7);
    return input + 16u * (((stage * (in / 8) + chunk) * kWarps + block) * kWholeRows + turned);
  }
  TK_DEVICE u32 middle_at(int block, int chunk, int channel) const {
    return middle + 16u * ((block * (kWholeRows / 8) + chunk) * out + (channel ^ (2 * chunk + block % 2)));
  }
};

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
TK_DEVICE void load_rows(const Whole& p, const Side& side, const void* data, long long pitch, int tile, int stage) {
  const int across = Strided ? side.in : side.count * (side.in / 8);
  for (int i = static_cast<int>(threadIdx.x); i < across * kWholeRows; i += kThreads) {
    const int row = i / across, unit = i % across;
    const bool there = tile * kWholeRows + row < p.rows;
    const int block = Strided ? unit % 8 : unit / (side.in / 8), chunk = Strided ? unit / 8 : unit % (side.in / 8);
    const T* from = static_cast<const T*>(data);
    if (there)
      from += (1ll * tile * kWholeRows + row) * pitch +
              (Strided ? 1ll * unit * side.blocks + side.first : 1ll * side.first * side.in + 8 * unit);
    ptx::cp_async_16(side.input_at(stage, block, chunk, row), from, there ? 16u : 0u);
  }
}

template <class T>
TK_DEVICE void load_tile(const Whole& p, const Side& first, const Side& second, int tile, int stage) {
  load_rows<T, false>(p, first, p.x, p.x_pitch, tile, stage);
  load_rows<T, true>(p, second, p.dy, p.dy_pitch, tile, stage);
  ptx::cp_async_commit_group();
}

// Channels of eight blocks become blocks of eight channels: four rows a warp.
TK_DEVICE void turn_blocks(const Side& side, int stage) {
  const int lane = lane_index();
  for (int chunk = 0; chunk < side.in / 8; ++chunk) {
    const u32 at = side.input_at(stage, lane % 8, chunk, 4 * warp_index() + lane / 8);
    u32 x[4];
    ptx::ldmatrix_x4_trans(x, at);
    __syncwarp();  // read by all before it is written
    ptx::stmatrix_x4(at, x);
  }
}

// d = W in^T of this warp's block: in an instruction columns 2t and 2t + 1 of tile j are rows 8t + 2j and 8t + 2j + 1.
template <class T, int Tall>
TK_DEVICE void multiply_input(float (&d)[Tall][4][4], const Side& side, int stage) {
  using form = ptx::mma_form<float, T, T>;
  const int warp = warp_index(), which = lane_index() / 8, i = lane_index() % 8;
#pragma unroll 1
  for (int k = 0; k < side.in / 16; ++k) {
    u32 b[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j)
      ptx::ldmatrix_x4(b[j], side.input_at(stage, warp, 2 * k + which % 2, 8 * (i / 2) + 4 * j + 2 * (which / 2) + i % 2));
#pragma unroll
    for (int m = 0; m < Tall; ++m) {
      if (16 * m >= side.out) break;
      u32 a[4];
      ptx::ldmatrix_x4(a, side.weight_at(warp, 2 * k + which / 2, 16 * m + 8 * (which % 2) + i));
#pragma unroll
      for (int j = 0; j < 4; ++j) ptx::mma<form>(d[m][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
}

// Every channel of d goes, eight rows a lane, where place(channel, chunk of rows) says.
template <class T, int Tall, class Place>
TK_DEVICE void send(const float (&d)[Tall][4][4], const Side& side, Place place) {
#pragma unroll
  for (int m = 0; m < Tall; ++m)
    if (16 * m < side.out)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto pair = [&](int j) { return ptx::pack<T>(d[m][j][2 * half], d[m][j][2 * half + 1]); };
        ptx::st_cluster_v4(place(16 * m + 8 * half + lane_row(), lane_chunk()), make_uint4(pair(0), pair(1), pair(2), pair(3)));
      }
}

// sums += middle^T in of this warp's block.
template <class T, int Tall>
TK_DEVICE void add_gradient(float (&sums)[Tall][2 * Tall][4], const Side& side, int stage) {
  using form = ptx::mma_form<float, T, T>;
  const int warp = warp_index(), which = lane_index() / 8, i = lane_index() % 8;
  u32 a[Tall][2][4];
#pragma unroll
  for (int m = 0; m < Tall; ++m)
    if (16 * m < side.out)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        ptx::ldmatrix_x4(a[m][k], side.middle_at(warp, 2 * k + which / 2, 16 * m + 8 * (which % 2) + i));
#pragma unroll
  for (int n = 0; n < 2 * Tall; ++n) {
    if (8 * n >= side.in) break;
    u32 b[4];
    ptx::ldmatrix_x4_trans(b, side.input_at(stage, warp, n, lane_index()));
#pragma unroll
    for (int m = 0; m < Tall; ++m)
      if (16 * m < side.out) {
        ptx::mma<form>(sums[m][n], a[m][0], b[0], b[1]);
        ptx::mma<form>(sums[m][n], a[m][1], b[2], b[3]);
      }
  }
}

// dx of this warp's block, in the place of x.
template <class T, int Tall>
TK_DEVICE void multiply_back(const Side& side, int stage) {
  using form = ptx::mma_form<float, T, T>;
  const int warp = warp_index(), which = lane_index() / 8, i = lane_index() % 8;
#pragma unroll 1
  for (int m = 0; m < kWholeRows / 16; ++m) {
    float d[2 * Tall][4] = {};
#pragma unroll 1
    for (int k = 0; k < side.out / 16; ++k) {
      u32 a[4];
      ptx::ldmatrix_x4_trans(a, side.middle_at(warp, 2 * m + which % 2, 16 * k + 8 * (which / 2) + i));
#pragma unroll
      for (int n = 0; n < 2 * Tall; n += 2) {
        if (8 * n >= side.in) break;
        u32 b[4];
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
      ptx::stmatrix_x4(side.input_at(stage, warp, n + which / 2, 16 * m + 8 * (which % 2) + i), words);
    }
  }
}

// This warp's block of dx, from the place of x.
template <class T>
TK_DEVICE void store_block(const Whole& p, const Side& side, int tile, int stage) {
  const int chunks = side.in / 8, warp = warp_index();
  T* to = static_cast<T*>(p.dx) + 1ll * (side.first + warp) * side.in;
  for (int i = lane_index(); i < chunks * kWholeRows; i += 32) {
    const int chunk = i % chunks, row = i / chunks, at = tile * kWholeRows + row;
    if (at < p.rows)
      ptx::st_global_v4(to + 1ll * at * side.blocks * side.in + 8 * chunk, ptx::ld_shared_v4(side.input_at(stage, warp, chunk, row)));
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

template <class T, int Tall>
TK_DEVICE void whole(const Whole& p, u32 memory) {
  const int each = static_cast<int>(share_of(p.first.blocks, p.ranks)), share = static_cast<int>(blockIdx.x) / p.ranks;
  const int shares = static_cast<int>(gridDim.x) / p.ranks, tiles = static_cast<int>(share_of(p.rows, kWholeRows));
  const Side first(p.first, each, memory), second(p.second, 8, memory + static_cast<u32>(whole_side(p.first)));
  const bool has_first = warp_index() < first.count;
  float of_first[Tall][2 * Tall][4] = {}, of_second[Tall][2 * Tall][4] = {};
  load_tile<T>(p, first, second, share, 0);
  load_weights<T>(first, p.first.weight);
  load_weights<T>(second, p.second.weight);
  cluster_arrive();
  int stage = 0;
#pragma unroll 1
  for (int tile = share; tile < tiles; tile += shares, stage ^= 1) {
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    if (tile + shares < tiles) load_tile<T>(p, first, second, tile + shares, stage ^ 1);
    turn_blocks(second, stage);
    __syncthreads();
    cluster_wait();
    if (has_first) {
      float h[Tall][4][4] = {};
      multiply_input<T>(h, first, stage);
      send<T>(h, first, [&](int channel, int chunk) {
        const int flat = (first.first + warp_index()) * first.out + channel, block = flat % second.blocks;
        return ptx::mapa(second.middle_at(block % 8, chunk, flat / second.blocks), static_cast<u32>(block / 8));
      });
    }
    float dh[Tall][4][4] = {};
    multiply_input<T>(dh, second, stage);
    send<T>(dh, second, [&](int channel, int chunk) {
      const int flat = channel * second.blocks + second.first + warp_index(), block = flat / first.out;
      return ptx::mapa(first.middle_at(block % each, chunk, flat % first.out), static_cast<u32>(block / each));
    });
    __syncwarp();
    cluster_sync();
    add_gradient<T>(of_second, second, stage);
    if (has_first) {
      add_gradient<T>(of_first, first, stage);
      __syncwarp();  // x is read by all before dx takes its place
      if (p.dx != nullptr) multiply_back<T, Tall>(first, stage);
    }
    __syncwarp();
    cluster_arrive();
    if (has_first && p.dx != nullptr) store_block<T>(p, first, tile, stage);
  }
  __syncwarp();
  cluster_wait();
  store_sums(of_first, first, p.of_first, share);
  store_sums(of_second, second, p.of_second, share);
}

}  // namespace tkpy::monarch

#define TKPY_MONARCH_WHOLE(SIDE, T)                                                    \
  extern "C" __global__ void __launch_bounds__(tkpy::monarch::kThreads, 1)             \
      monarch_whole_##SIDE##_##T(const __grid_constant__ tkpy::monarch::Whole p) {     \
    extern __shared__ __align__(128) unsigned char memory[];                           \
    tkpy::monarch::whole<tk::T, SIDE / 16>(p, tk::ptx::shared_address(memory));        \
  }
TKPY_MONARCH_WHOLE(32, bf16)
TKPY_MONARCH_WHOLE(32, fp16)
TKPY_MONARCH_WHOLE(48, bf16)
TKPY_MONARCH_WHOLE(48, fp16)
