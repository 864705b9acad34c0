// level 1, copy a tile by TMA: y = x                                                          one 64 x 64 tile per CTA
// in   x [rows, cols] bf16, pitch a multiple of 16 bytes          out  y, the same
// grid (ceil(cols / 64), ceil(rows / 64)), block 32; maps of x and y: box {64, 64}, swizzle 128
// lane 0       gl x --TMA--> st --TMA--> gl y        full: 1 arrival + 8 KiB, waited by lane 0
// What it teaches: a TMA load says that it has landed by counting bytes at an mbarrier; a TMA store reads shared memory
// behind your back until wait_stores_read, and nothing here passes through registers. Rows and columns outside the
// tensor are read as zero and not written: tails cost no code.
// precision exact      limits rows, cols >= 1; cols * 2 bytes a multiple of 16      cost bytes 4 rows cols, flops 0
#include "tk/tk.cuh"

using namespace tk;
using Tile = st<bf16, 64, 64>;

extern "C" __global__ void __launch_bounds__(32)
    level1_copy_tile(const __grid_constant__ tensor_map x_map, const __grid_constant__ tensor_map y_map) {
  __shared__ Tile tile;
  __shared__ mbarrier full;
  const gl<Tile> x(x_map), y(y_map);
  const int row = static_cast<int>(blockIdx.y) * Tile::rows, col = static_cast<int>(blockIdx.x) * Tile::cols;
  if (threadIdx.x != 0) return;

  init(full, 1);
  publish_barriers();  // the TMA unit is another proxy: it must see the barrier initialised

  arrive_expect(full, Tile::bytes);
  load(tile, x, {row, col}, full);
  wait(full, 0);

  // Written by TMA, read by TMA: one proxy, and the wait orders them, so no proxy fence is needed.
  store(y, tile, {row, col});
  commit_stores();
  wait_stores();  // shared memory ends with the CTA
}
