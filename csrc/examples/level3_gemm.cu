// level 3, a GEMM by one warpgroup: C = A B                                        one 64 x 128 tile of C per CTA
// in   A [M, K], B [K, N] bf16, rows contiguous          out  C [M, N] bf16
// grid (ceil(N / 128), ceil(M / 64)), block 128; maps: A box {64, 64}, B box {64, 64} (2 panels), C box {64, 64}
// thread 0      gl A, B --TMA--> st            full: 1 arrival + 24 KiB, waited by all, phase = k
// warpgroup     D += st A x st B (wgmma m64n128k16 x 4)         then __syncthreads frees the buffer
// warpgroup     D -> bf16 -> st --TMA--> gl C
// What it teaches: wgmma. Four warps hold D together, 16 rows each; it runs behind your back like TMA does, so D is
// fenced before, committed and waited for after. B is stored K x N, the "transposed" order, which costs nothing.
// precision  products bf16, sums fp32, result bf16       limits pitches % 16 bytes       cost  flops 2 M N K
#include "tk/tk.cuh"

using namespace tk;
using ATile = st<bf16, 64, 64>;
using BTile = st<bf16, 64, 128>;
using CTile = st<bf16, 64, 128>;

extern "C" __global__ void __launch_bounds__(128)
    level3_gemm(const __grid_constant__ tensor_map a_map, const __grid_constant__ tensor_map b_map,
                const __grid_constant__ tensor_map c_map, int k) {
  __shared__ ATile a_tile;
  __shared__ BTile b_tile;
  __shared__ CTile c_tile;
  __shared__ mbarrier full;
  const gl<ATile> a(a_map);
  const gl<BTile> b(b_map);
  const gl<CTile> c(c_map);
  const int row = static_cast<int>(blockIdx.y) * CTile::rows, col = static_cast<int>(blockIdx.x) * CTile::cols;

  if (threadIdx.x == 0) {
    init(full, 1);
    publish_barriers();
  }
  __syncthreads();

  rt_fl<16, 128> d;
  zero(d);
  u32 parity = 0;
  for (int depth = 0; depth < k; depth += ATile::cols) {  // beyond K both tiles are zero
    if (threadIdx.x == 0) {
      arrive_expect(full, ATile::bytes + BTile::bytes);
      load(a_tile, a, {row, depth}, full);
      load(b_tile, b, {depth, col}, full);
    }
    wait(full, parity);
    parity ^= 1;
    mma_fence();
    mma_AB(d, a_tile, b_tile);
    mma_commit();
    mma_wait();
    __syncthreads();  // all four warps have read the tiles: the next load may overwrite them
  }

  rt_bf<16, 128> result;
  copy(result, d);
  store(c_tile, result, 16 * warp_index());
  publish_tile();
  __syncthreads();
  if (threadIdx.x == 0) {
    store(c, c_tile, {row, col});
    commit_stores();
    wait_stores();
  }
}
