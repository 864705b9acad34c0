// level 4, the same GEMM, pipelined: C = A B                                      one 64 x 256 tile of C per CTA
// in   A [M, K], B [K, N] bf16, rows contiguous          out  C [M, N] bf16
// grid (ceil(N / 256), ceil(M / 64)), block 128, dynamic shared memory sizeof(Shared); every map: box {64, 64}
// thread 0      gl A, B --TMA--> slot k % 4, four slots ahead       full[4]: 1 arrival + 40 KiB, waited by all
// warpgroup     D += A[slot] B[slot], one wgmma group always in flight
//               mma_wait<1> after issuing k: product k - 1 is over   free[4]: 4 arrivals (a lane of each warp), waited
//               so its slot is released                              by thread 0, which refills it for k + 3
// warpgroup     D -> bf16 -> st --TMA--> gl C
// What it teaches: a ring of slots with two barriers a slot. Loads of later steps run under the products of this one.
// precision  products bf16, sums fp32, result bf16       limits pitches % 16 bytes       cost  flops 2 M N K
#include "tk/tk.cuh"

using namespace tk;
constexpr int kStages = 4;
using ATile = st<bf16, 64, 64>;
using BTile = st<bf16, 64, 256>;
using CTile = st<bf16, 64, 256>;

struct Shared {
  ATile a[kStages];
  BTile b[kStages];
  CTile c;
  mbarrier full[kStages], free[kStages];
};

extern "C" __global__ void __launch_bounds__(128)
    level4_gemm_pipelined(const __grid_constant__ tensor_map a_map, const __grid_constant__ tensor_map b_map,
                          const __grid_constant__ tensor_map c_map, int k) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const gl<ATile> a(a_map);
  const gl<BTile> b(b_map);
  const gl<CTile> c(c_map);
  const int row = static_cast<int>(blockIdx.y) * CTile::rows, col = static_cast<int>(blockIdx.x) * CTile::cols;
  const int steps = (k + ATile::cols - 1) / ATile::cols;

  auto fetch = [&](int step) {
    const int slot = step % kStages, depth = step * ATile::cols;
    arrive_expect(shared.full[slot], ATile::bytes + BTile::bytes);
    load(shared.a[slot], a, {row, depth}, shared.full[slot]);
    load(shared.b[slot], b, {depth, col}, shared.full[slot]);
  };

  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      init(shared.full[slot], 1);
      init(shared.free[slot], 4);
    }
    publish_barriers();
    for (int step = 0; step < kStages && step < steps; ++step) fetch(step);
  }
  __syncthreads();

  rt_fl<16, 256> d;
  zero(d);
  for (int step = 0; step < steps; ++step) {
    const int slot = step % kStages;
    wait(shared.full[slot], step / kStages % 2);
    mma_fence();
    mma_AB(d, shared.a[slot], shared.b[slot]);
    mma_commit();
    mma_wait<1>();
    if (step == 0) continue;
    const int done = step - 1;  // this warp has finished product `done`
    if (lane_index() == 0) arrive(shared.free[done % kStages]);
    if (threadIdx.x == 0 && done + kStages < steps) {
      wait(shared.free[done % kStages], done / kStages % 2);
      fetch(done + kStages);
    }
  }
  mma_wait();

  rt_bf<16, 256> result;
  copy(result, d);
  store(shared.c, result, 16 * warp_index());
  publish_tile();
  __syncthreads();
  if (threadIdx.x == 0) {
    store(c, shared.c, {row, col});
    commit_stores();
    wait_stores();
  }
}
