// level 5, the same GEMM, warp-specialised, persistent, in clusters of two with multicast: C = A B
// in   A [M, K], B [K, N] bf16, rows contiguous          out  C [M, N] bf16
// a cluster makes 256 x 256 of C: each CTA 128 rows of it, and both need the same B, of which each fetches one half
// grid any multiple of 2 up to the SMs, cluster (2, 1, 1), block 384, dynamic shared memory sizeof(Shared)
// maps: A box {64, 64}, B box {64, 64}, C box {64, 64}, all swizzle 128
// producer  warp 0 of warpgroup 0, one lane    gl A --TMA--> a[slot][2], gl B --TMA--> half of b[slot] in both CTAs
//             full[4]  1 arrival + 48 KiB (its own A, both halves of B), waited by both consumers
// consumers warpgroups 1, 2     D (64 x 256 each) += a[slot][i] b[slot], one group in flight
//             free[4]  16 arrivals: 8 consumer warps in each of 2 CTAs, waited by the producer, for both CTAs read
//                      what it multicasts
//           D -> bf16 -> c[i] --TMA--> gl C, 64 columns at a time
//             named barriers 1, 2: the 128 threads of one consumer
// At the end the cluster meets: no CTA may leave while the other can still write into it or arrive at its barriers.
// precision  products bf16, sums fp32, result bf16       limits pitches % 16 bytes       cost  flops 2 M N K
#include "tk/tk.cuh"

using namespace tk;
constexpr int kStages = 4, kConsumers = 2, kCluster = 2;
using ATile = st<bf16, 64, 64>;
using BTile = st<bf16, 64, 256>;
using BHalf = part_t<kCluster, BTile>;
using CTile = st<bf16, 64, 64>;

struct Shared {
  ATile a[kStages][kConsumers];
  BTile b[kStages];
  CTile c[kConsumers];
  mbarrier full[kStages], free[kStages];
};

struct Problem {
  int m, n, k;
  TK_DEVICE int rows() const { return (m + 255) / 256; }  // in cluster tiles
  TK_DEVICE int cols() const { return (n + 255) / 256; }
  TK_DEVICE int steps() const { return (k + ATile::cols - 1) / ATile::cols; }
  TK_DEVICE int first() const { return static_cast<int>(blockIdx.x) / kCluster; }
  TK_DEVICE int stride() const { return static_cast<int>(gridDim.x) / kCluster; }
  TK_DEVICE Tile2 at(int tile) const { return grouped_tile(tile, rows(), cols(), 8); }
};

TK_DEVICE void produce(Shared& shared, const Problem& p, gl<ATile> a, gl<BHalf> b, int rank) {
  ring<kStages> at;
  for (int tile = p.first(); tile < p.rows() * p.cols(); tile += p.stride()) {
    const int row = p.at(tile).row * 256 + rank * 128, col = p.at(tile).col * 256 + rank * BHalf::cols;
    for (int step = 0; step < p.steps(); ++step, at.next()) {
      mbarrier& full = shared.full[at.slot];
      wait_cluster(shared.free[at.slot], at.parity ^ 1);
      arrive_expect(full, kConsumers * ATile::bytes + BTile::bytes);
      for (int i = 0; i < kConsumers; ++i) load(shared.a[at.slot][i], a, {row + 64 * i, step * ATile::cols}, full);
      load_multicast(part<kCluster>(shared.b[at.slot], rank), b, {step * ATile::cols, col}, full, 0b11);
    }
  }
}

TK_DEVICE void release(Shared& shared, int slot) {  // one lane for each CTA that fills this slot
  if (lane_index() < kCluster) hand_back_at(shared.free[slot], static_cast<u32>(lane_index()));
}

TK_DEVICE void write_out(CTile& tile, const rt_fl<16, 256>& d, gl<CTile> c, int row, int col, int consumer) {
  const bool leader = threadIdx.x % 128 == 0;
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    rt_fl<16, 64> block;
    rt_bf<16, 64> result;
    columns(block, d, 64 * part);
    copy(result, block);
    if (leader) wait_stores_read();  // the last store has read the tile
    sync(1 + consumer, 128);
    store(tile, result, 16 * (warp_index() % 4));
    publish_tile();
    sync(1 + consumer, 128);
    if (leader) {
      store(c, tile, {row, col + 64 * part});
      commit_stores();
    }
  }
}

TK_DEVICE void consume(Shared& shared, const Problem& p, gl<CTile> c, int rank, int consumer) {
  ring<kStages> at;
  for (int tile = p.first(); tile < p.rows() * p.cols(); tile += p.stride()) {
    rt_fl<16, 256> d;
    zero(d);
    for (int step = 0; step < p.steps(); ++step, at.next()) {
      wait_cluster(shared.full[at.slot], at.parity);
      mma_fence();
      mma_AB(d, shared.a[at.slot][consumer], shared.b[at.slot]);
      mma_commit();
      mma_wait<1>();
      if (step > 0) release(shared, (at.slot + kStages - 1) % kStages);
    }
    mma_wait();
    if (p.steps() > 0) release(shared, (at.slot + kStages - 1) % kStages);
    write_out(shared.c[consumer], d, c, p.at(tile).row * 256 + rank * 128 + 64 * consumer, p.at(tile).col * 256,
              consumer);
  }
  if (threadIdx.x % 128 == 0) wait_stores();
}

extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(kCluster, 1, 1)
    level5_gemm_specialised(const __grid_constant__ tensor_map a_map, const __grid_constant__ tensor_map b_map,
                            const __grid_constant__ tensor_map c_map, int m, int n, int k) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Problem problem{m, n, k};
  const int rank = cluster_rank();
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      init(shared.full[slot], 1);
      init(shared.free[slot], 4 * kConsumers * kCluster);
    }
    publish_barriers();
  }
  cluster_sync();

  if (warpgroup_index() == 0) {
    give_registers<40>();
    if (threadIdx.x == 0) produce(shared, problem, gl<ATile>(a_map), gl<BHalf>(b_map), rank);
  } else {
    take_registers<232>();
    consume(shared, problem, gl<CTile>(c_map), rank, warpgroup_index() - 1);
  }
  __syncwarp();
  cluster_sync();
}
