// monarch_multiply's forward for blocks of up to 64, where no one wants h: x and the factors come once.
//
//   h[k, q] = sum_p w1[k, q, p] x[k, p];  h flat is h[r, l];  y[s, l] = sum_r w2[l, s, r] h[r, l]
//
// As in whole.cu a cluster of l / 8 CTAs walks over tiles of 32 rows with both factors' weights in its shared memory, eight blocks
// of each factor a CTA, one of each a warp; h crosses to the CTA that owns the strided block.
//
//   x (global) --cp.async--> in [2 stages] --w1--> h --16 bytes, eight rows of a channel--> middle of the owner
//   middle --w2--> y, eight channels of a block, in the place of x --transposed: a channel of eight blocks--> y (global)
//
// barriers  __syncthreads twice a tile: x has landed and the other stage is free; all blocks of y are there. The cluster twice: its
//           middles are free (arrive after the last read, wait before the first write of the next tile; at first: the
//           CTA has begun); the middles are there
// precision products exact, sums fp32, h and y rounded once      limits  as half.cu
// cost      bytes: x and y once, 4 n a row, the factors once a cluster; flops 4 n^1.5 a row
#include "sides.cuh"

namespace tkpy::monarch {

// y of the eight strided blocks, from their channels in shared memory; each warp four rows.
template <class T>
TK_DEVICE void store_strided(const Product& p, const Side& side, int tile, u32 at) {
  T* to = static_cast<T*>(p.y) + side.first;
  for (int i = lane_index(); i < 4 * side.in; i += 32) {
    const int channel = i % side.in, row = 4 * warp_index() + i / side.in, of_y = tile * kWholeRows + row;
    if (of_y < p.rows)
      ptx::st_global_v4(to + (1ll * of_y * side.in + channel) * side.blocks,
                        ptx::ld_shared_v4(input_at(at, channel % 8, channel / 8, row)));
  }
}

template <class T>
TK_DEVICE void product(const Product& p, u32 memory) {
  constexpr int tall = kHalfSide / 16;
  const int each = static_cast<int>(share_of(p.first.blocks, p.ranks)), tiles = static_cast<int>(share_of(p.rows, kWholeRows));
  const int clusters = static_cast<int>(gridDim.x) / p.ranks;
  const u32 after = memory + static_cast<u32>(weight_bytes(p.first)), middle = after + static_cast<u32>(weight_bytes(p.second));
  const u32 stages = middle + static_cast<u32>(tile_bytes(p.second.in));
  const Side first(p.first, each, memory), last(p.second, 8, after);
  const Side second({nullptr, p.second.blocks, p.second.in, p.second.out}, 8, after);  // as it receives h
  const Places places{first, second, each};
  const bool has_first = warp_index() < first.count;
  const auto load = [&](int tile, int stage) {
    load_rows<T, false>(p.rows, first, p.x, p.x_pitch, tile, stages + static_cast<u32>(stage * product_stage(p)));
    ptx::cp_async_commit_group();
  };
  int tile = static_cast<int>(blockIdx.x) / p.ranks, stage = 0;
  load(tile, 0);
  load_weights<T>(first, p.first.weight);
  load_weights<T>(last, p.second.weight);
  cluster_arrive();
#pragma unroll 1
  for (; tile < tiles; tile += clusters, stage ^= 1) {
    const u32 at = stages + static_cast<u32>(stage * product_stage(p));
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    if (tile + clusters < tiles) load(tile + clusters, stage ^ 1);
    cluster_wait();
    if (has_first) {
      uint4 h[tall][2];
      multiply_input<T>(h, first, at);
      send(h, first, [&](int channel, int chunk) { return places.of_h(middle, channel, chunk); });
    }
    __syncwarp();
    cluster_sync();
    multiply_middle<T, tall, true>(second, middle, at);
    __syncwarp();
    cluster_arrive();
    __syncthreads();
    turn_blocks(second, at);
    __syncwarp();
    store_strided<T>(p, second, tile, at);
  }
  __syncwarp();
  cluster_wait();
}

}  // namespace tkpy::monarch

#define TKPY_MONARCH_PRODUCT(T)                                                       \
  extern "C" __global__ void __launch_bounds__(tkpy::monarch::kThreads, 2)            \
      monarch_product_##T(const __grid_constant__ tkpy::monarch::Product p) {         \
    extern __shared__ __align__(128) unsigned char memory[];                          \
    tkpy::monarch::product<tk::T>(p, tk::ptx::shared_address(memory));                \
  }
TKPY_MONARCH_PRODUCT(bf16)
TKPY_MONARCH_PRODUCT(fp16)
