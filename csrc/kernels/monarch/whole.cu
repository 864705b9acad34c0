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
// barriers  __syncthreads twice a tile: it has landed, and the other stage is free, which the next tile then flies into; dy is
//           transposed. The cluster twice: its middles are free (arrive after the last read, wait before the first write of
//           the next tile; at first: the CTA has begun); all middles are there
// precision products exact, sums fp32, h, dh, dx rounded once as in the forward; sums and order do not depend on timing
// limits    p, q, r, s 16, 32 or 48 (the kernel's name bounds them), l a multiple of 8 up to 64, k <= l, k q = l r; 16-byte
//           aligned rows; shared memory: whole_side, at most 216 KB
// cost      bytes: x, dy, dx once, 6 n a row, and a share of 8 n^1.5 bytes a cluster, which torch reads again: a share is as
//           much as 1.33 sqrt(n) rows. flops: five products where four count, 10 n^1.5 a row: h is computed again, since
//           to keep it is n elements more to write and n to read, a third of all that moves, and 53 flops a byte
//           (sqrt(n) = 32) are far below what the tensor cores do
// why not   sqrt(n) = 64: the sums are 2.1 MB, the weights 1 MB. Each of a cluster's eight CTAs, the most that is portable, would
//           hold 262 KB of sums, as much as all of its registers, and 131 KB of weights, of 483 KB of registers and shared memory;
//           the 90 KB left must hold the threads' own registers (64 of each of 256: 65 KB) and tiles of x, dy, h and dh, 32 KB
//           each for 32 rows. Weights from L2 would be 196 KB a tile for 96 KB of x, dy and dx. So half.cu: a launch a factor
#include "sides.cuh"

namespace tkpy::monarch {

// Where a stage of a side's input lies, and its middle, after its weights.
struct Buffers {
  u32 input, middle;
  int bytes;
  TK_DEVICE Buffers(const Factor& f, u32 memory)
      : input(memory + static_cast<u32>(weight_bytes(f))), middle(input + static_cast<u32>(kWholeStages * tile_bytes(f.in))),
        bytes(tile_bytes(f.in)) {}
  TK_DEVICE u32 at(int stage) const { return input + static_cast<u32>(stage * bytes); }
};

template <class T, int Tall>
TK_DEVICE void whole(const Whole& p, u32 memory) {
  const int each = static_cast<int>(share_of(p.first.blocks, p.ranks)), share = static_cast<int>(blockIdx.x) / p.ranks;
  const int shares = static_cast<int>(gridDim.x) / p.ranks, tiles = static_cast<int>(share_of(p.rows, kWholeRows));
  const u32 after = memory + static_cast<u32>(whole_side(p.first));
  const Side first(p.first, each, memory), second(p.second, 8, after);
  const Buffers x(p.first, memory), dy(p.second, after);  // and dh; and h
  const Places places{first, second, each};
  const bool has_first = warp_index() < first.count;
  float of_first[Tall][2 * Tall][4] = {}, of_second[Tall][2 * Tall][4] = {};
  const auto load = [&](int tile, int stage) {
    load_rows<T, false>(p.rows, first, p.x, p.x_pitch, tile, x.at(stage));
    load_rows<T, true>(p.rows, second, p.dy, p.dy_pitch, tile, dy.at(stage));
    ptx::cp_async_commit_group();
  };
  load(share, 0);
  load_weights<T>(first, p.first.weight);
  load_weights<T>(second, p.second.weight);
  cluster_arrive();
  int stage = 0;
#pragma unroll 1
  for (int tile = share; tile < tiles; tile += shares, stage ^= 1) {
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    if (tile + shares < tiles) load(tile + shares, stage ^ 1);
    turn_blocks(second, dy.at(stage));
    __syncthreads();
    cluster_wait();
    uint4 sent[Tall][2];
    if (has_first) {
      multiply_input<T>(sent, first, x.at(stage));
      send(sent, first, [&](int channel, int chunk) { return places.of_h(dy.middle, channel, chunk); });
    }
    multiply_input<T>(sent, second, dy.at(stage));
    send(sent, second, [&](int channel, int chunk) { return places.of_dh(x.middle, channel, chunk); });
    __syncwarp();
    cluster_sync();
    add_gradient<T>(of_second, second, dy.middle, dy.at(stage));
    if (has_first) {
      add_gradient<T>(of_first, first, x.middle, x.at(stage));
      __syncwarp();  // x is read by all before dx takes its place
      if (p.dx != nullptr) multiply_middle<T, Tall, false>(first, x.middle, x.at(stage));
    }
    __syncwarp();
    cluster_arrive();
    if (has_first && p.dx != nullptr) store_block<T>(p, first, tile, x.at(stage));
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
