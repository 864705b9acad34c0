// level 2, row softmax: y_ij = exp(x_ij - max_j x_ij) / sum_j exp(x_ij - max_j x_ij)           64 rows per CTA
// in   x [rows, cols] bf16, cols <= 256          out  y, the same
// grid ceil(rows / 64), block 128; maps of x and y: box {64, 64}, swizzle 128 (four panels make a 64 x 256 tile)
// thread 0     gl x --TMA--> st                  full: 1 arrival + 32 KiB, waited by all
// warp w       st -> rt rows 16 w .. : y = softmax(x) -> st           (__syncthreads)
// thread 0     st --TMA--> gl y
// What it teaches: register tiles. A row of a warp's tile lies in four neighbouring lanes, so a row reduction is a loop
// in the lane and two shuffles. Registers -> shared is the generic proxy: publish_tile by every writer, then the
// barrier, then the store.
// precision  maths fp32, exp2 with log2(e) folded in; result rounded to bf16       limits cols <= 256, pitch % 16 bytes
// cost  bytes 4 rows cols, flops ~ 5 rows cols
#include "tk/tk.cuh"

using namespace tk;
using Tile = st<bf16, 64, 256>;
constexpr float kLog2e = 1.44269504f;
constexpr float kMinusInfinity = -__builtin_huge_valf();

extern "C" __global__ void __launch_bounds__(128)
    level2_row_softmax(const __grid_constant__ tensor_map x_map, const __grid_constant__ tensor_map y_map, int cols) {
  __shared__ Tile tile;
  __shared__ mbarrier full;
  const gl<Tile> x(x_map), y(y_map);
  const int row = static_cast<int>(blockIdx.x) * Tile::rows;

  if (threadIdx.x == 0) {
    init(full, 1);
    publish_barriers();
    arrive_expect(full, Tile::bytes);
    load(tile, x, {row, 0}, full);
  }
  __syncthreads();
  wait(full, 0);

  rt_bf<16, 256> packed;
  rt_fl<16, 256> values;
  load(packed, tile, 16 * warp_index());
  copy(values, packed);
  // The tail of a row reads as zero, which is not neutral for a softmax; -inf is.
  map_at(values, values, [cols](int, int c, float v) { return c < cols ? v * kLog2e : kMinusInfinity; });

  rt_fl<16, 256>::per_row best, total;
  row_max(best, values);
  sub(values, values, best);
  exp2(values, values);
  row_sum(total, values);
  rcp(total, total);
  mul(values, values, total);

  copy(packed, values);
  store(tile, packed, 16 * warp_index());
  publish_tile();
  __syncthreads();
  if (threadIdx.x == 0) {
    store(y, tile, {row, 0});
    commit_stores();
    wait_stores();
  }
}
