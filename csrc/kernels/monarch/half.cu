// Half of the backward of monarch_multiply in one launch, for blocks of which both factors' sums do not fit (whole.cu):
//
//   first    dh[r, l] = sum_s w2[l, s, r] dy[s, l];  dx[k, p] = sum_q w1[k, q, p] dh[k, q];  dw1 = sum over rows of dh x
//   second   h[k, q] = sum_p w1[k, q, p] x[k, p];  dw2 = sum over rows of dy h
//
// As there a cluster of l / 8 CTAs holds the sums in registers, a warp one block, and walks over tiles of 32 rows, the weights
// in shared memory; here of one factor, whose operand (x; dy) meets the middle (dh; h) that the other's input (dy; x) makes.
// At 64 x 64 the weights leave room for three buffers of a tile's channels, which change their parts:
//
//   a  input (global --cp.async-->), then the middle      b  operand, then dx      c  the next tile's input, on its way
//   next tile: a <- c, b <- a, c <- b
//
// barriers  the input has landed and the last tile's buffers are free (__syncthreads); all CTAs have read their inputs, so that
//           middles may take their place (cluster); the middles are there, and so is the operand (cluster); strided blocks
//           are transposed (__syncthreads)
// precision as whole.cu      limits  p, q, r, s 16, 32, 48 or 64, l a multiple of 8 up to 64, k <= l, k q = l r; rows aligned
// cost      first: x, dy, dx once, 6 n bytes a row; second: x and dy once, 4 n. With a share of 4 n^1.5 bytes each a cluster, five
//           units of n elements a row for the two, where three launches through h and dh take seven and one more in
//           the forward. flops: first 6 n^1.5, second 4 n^1.5 (h is computed again: 10 where 8 count)
#include "sides.cuh"

namespace tkpy::monarch {

template <class T, bool First>
TK_DEVICE void half(const Whole& p, u32 memory) {
  constexpr int tall = kHalfSide / 16;
  const int each = static_cast<int>(share_of(p.first.blocks, p.ranks)), share = static_cast<int>(blockIdx.x) / p.ranks;
  const int shares = static_cast<int>(gridDim.x) / p.ranks, tiles = static_cast<int>(share_of(p.rows, kWholeRows));
  const u32 after = memory + static_cast<u32>(weight_bytes(p.first));
  const Side first(p.first, each, memory), second(p.second, 8, after);
  const Places places{first, second, each};
  const bool has_first = warp_index() < first.count;
  u32 a = after + (First ? static_cast<u32>(weight_bytes(p.second)) : 0u), b = a + half_buffer(p), c = b + half_buffer(p);
  float sums[tall][2 * tall][4] = {};
  const auto load_x = [&](int tile, u32 at) { load_rows<T, false>(p.rows, first, p.x, p.x_pitch, tile, at); };
  const auto load_dy = [&](int tile, u32 at) { load_rows<T, true>(p.rows, second, p.dy, p.dy_pitch, tile, at); };
  const auto load_input = [&](int tile, u32 at) {
    if (tile < tiles) First ? load_dy(tile, at) : load_x(tile, at);
    ptx::cp_async_commit_group();
  };
  load_input(share, a);
  load_weights<T>(first, p.first.weight);
  if (First) load_weights<T>(second, p.second.weight);
#pragma unroll 1
  for (int tile = share; tile < tiles; tile += shares) {
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    First ? load_x(tile, b) : load_dy(tile, b);
    ptx::cp_async_commit_group();
    load_input(tile + shares, c);
    uint4 sent[tall][2];
    if (First) {
      turn_blocks(second, a);
      __syncthreads();
      multiply_input<T>(sent, second, a);
    } else if (has_first) {
      multiply_input<T>(sent, first, a);
    }
    __syncwarp();
    cluster_sync();
    if (First) {
      send(sent, second, [&](int channel, int chunk) { return places.of_dh(a, channel, chunk); });
    } else if (has_first) {
      send(sent, first, [&](int channel, int chunk) { return places.of_h(a, channel, chunk); });
    }
    ptx::cp_async_wait_group<1>();
    __syncwarp();
    cluster_sync();
    if (!First) {
      turn_blocks(second, b);
      __syncthreads();
      add_gradient<T>(sums, second, a, b);
    } else if (has_first) {
      add_gradient<T>(sums, first, a, b);
      if (p.dx != nullptr) {
        __syncwarp();  // x is read by all before dx takes its place
        multiply_middle<T, tall, false>(first, a, b);
        __syncwarp();
        store_block<T>(p, first, tile, b);
      }
    }
    const u32 next = c;
    c = b;
    b = a;
    a = next;
  }
  if (First)
    store_sums(sums, first, p.of_first, share);
  else
    store_sums(sums, second, p.of_second, share);
}

}  // namespace tkpy::monarch

#define TKPY_MONARCH_HALF(NAME, FIRST, T)                                              \
  extern "C" __global__ void __launch_bounds__(tkpy::monarch::kThreads, 1)             \
      monarch_half_##NAME##_##T(const __grid_constant__ tkpy::monarch::Whole p) {      \
    extern __shared__ __align__(128) unsigned char memory[];                           \
    tkpy::monarch::half<tk::T, FIRST>(p, tk::ptx::shared_address(memory));             \
  }
TKPY_MONARCH_HALF(first, true, bf16)
TKPY_MONARCH_HALF(first, true, fp16)
TKPY_MONARCH_HALF(second, false, bf16)
TKPY_MONARCH_HALF(second, false, fp16)
