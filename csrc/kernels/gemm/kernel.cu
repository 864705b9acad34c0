// gemm: C = act(A B + bias) + residual                                          A: M x K, B: K x N, C: M x N, any sizes
// in   A, B bf16 or fp16, each with either of its two dimensions contiguous | bias [N], residual [M, N] optional
// out  C, the type of A, rows contiguous, any pitch
// kernels  gemm_<bf16|fp16>_<mk|km>_<nk|kn>_<tma|generic>: km: A is stored with m contiguous; kn: B with n contiguous
//   tma      pitches and addresses multiples of 16 bytes; a cluster of two CTAs, 128 rows each, shares B by multicast
//   generic  anything else; the producer warpgroup loads with masked accesses
// grid a multiple of 2, cluster (2, 1, 1), block 384, kSharedBytes; persistent, by clusters
// producer   warpgroup 0           gl A, B --> a[slot][2], b[slot]
//              full[4]  tma: 1 arrival + 48 KiB; generic: 128 arrivals; waited by both consumers
// consumers  warpgroups 1, 2       D (64 x 256 fp32 each) += a[slot][i] b[slot], one wgmma group in flight
//              free[4]  8 arrivals (consumer warps) x CTAs that fill the slot (tma 2, generic 1), waited by producer
//            D -> patch (a warp's own 16 x 64 fp32) -> rows: bias, activation, residual, rounding, masked stores
// At the end the cluster meets: no CTA may leave while the other can write into it or arrive at its barriers.
// Tails: what lies outside A and B reads as zero, what lies outside C is not written. No copies, no padding.
// precision  products exact, sums fp32 in the order of wgmma, epilogue fp32, one rounding at the end
// limits  sm_90a; M, N, K below 2^31 - 512; A, B, C, bias and residual of one type
// cost  bytes 2 (MK + KN + MN), flops 2 M N K
#include "epilogue.cuh"

namespace tkpy::gemm {

enum class Route { tma, generic };

template <class T, Major MajorA, Major MajorB, Route R>
struct Gemm {
  using ATile = st<T, 64, 64>;  // 64 x 64 whichever way it is stored
  using BTile = st<T, MajorB == Major::k ? kTileCols : kTileDepth, MajorB == Major::k ? kTileDepth : kTileCols>;
  using BHalf = part_t<kCluster, BTile>;
  static constexpr int fillers = R == Route::tma ? kCluster : 1;  // CTAs that write into one slot

  struct Shared {
    ATile a[kStages][kConsumers];
    BTile b[kStages];
    float patch[4 * kConsumers][16 * 64];
    mbarrier full[kStages], free[kStages];
  };
  static_assert(__builtin_offsetof(Shared, free) + sizeof(Shared::free) == kSharedBytes,
                "the launcher asks for kSharedBytes: params.h and Shared must agree");
  static_assert(kSharedBytes <= 232448, "a CTA has at most 227 KiB of shared memory");

  struct Schedule {
    int m, n, k;
    TK_DEVICE explicit Schedule(const Params& p) : m(p.m), n(p.n), k(p.k) {}
    TK_DEVICE int rows() const { return (m + kCluster * kTileRows - 1) / (kCluster * kTileRows); }
    TK_DEVICE int cols() const { return (n + kTileCols - 1) / kTileCols; }
    TK_DEVICE int steps() const { return (k + kTileDepth - 1) / kTileDepth; }
    TK_DEVICE int first() const { return static_cast<int>(blockIdx.x) / kCluster; }
    TK_DEVICE int stride() const { return static_cast<int>(gridDim.x) / kCluster; }
    TK_DEVICE int row(int tile, int rank) const {
      return (grouped_tile(tile, rows(), cols(), kGroupRows).row * kCluster + rank) * kTileRows;
    }
    TK_DEVICE int col(int tile) const { return grouped_tile(tile, rows(), cols(), kGroupRows).col * kTileCols; }
  };

  // One thread. Each CTA fetches its own A and half of B, and sends that half to both.
  TK_DEVICE static void fetch(Shared& shared, const Params& p, int slot, int row, int col, int depth, int rank) {
    mbarrier& full = shared.full[slot];
    const gl<ATile> a(p.a);
    const gl<BHalf> b(p.b);
    arrive_expect(full, kConsumers * ATile::bytes + BTile::bytes);
    for (int i = 0; i < kConsumers; ++i) {
      if constexpr (MajorA == Major::k)
        load(shared.a[slot][i], a, {row + 64 * i, depth}, full);
      else
        load(shared.a[slot][i], a, {depth, row + 64 * i}, full);
    }
    BHalf& half = part<kCluster>(shared.b[slot], rank);
    const int half_col = col + rank * kTileCols / kCluster;
    if constexpr (MajorB == Major::k)
      load_multicast(half, b, {half_col, depth}, full, 0b11);
    else
      load_multicast(half, b, {depth, half_col}, full, 0b11);
  }

  // All 128 threads of the producer.
  TK_DEVICE static void fetch_generic(Shared& shared, const Params& p, int slot, int row, int col, int depth) {
    constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
    const view<const T> a{static_cast<const T*>(p.a_data), at ? p.k : p.m, at ? p.m : p.k, p.a_pitch};
    const view<const T> b{static_cast<const T*>(p.b_data), bt ? p.k : p.n, bt ? p.n : p.k, p.b_pitch};
    for (int i = 0; i < kConsumers; ++i)
      load<warpgroup>(shared.a[slot][i], a, at ? depth : row + 64 * i, at ? row + 64 * i : depth);
    load<warpgroup>(shared.b[slot], b, bt ? depth : col, bt ? col : depth);
    publish_tile();
    arrive(shared.full[slot]);
  }

  TK_DEVICE static void produce(Shared& shared, const Params& p, int rank) {
    const Schedule schedule(p);
    ring<kStages> at;
    for (int tile = schedule.first(); tile < schedule.rows() * schedule.cols(); tile += schedule.stride()) {
      const int row = schedule.row(tile, rank), col = schedule.col(tile);
      for (int step = 0; step < schedule.steps(); ++step, at.next()) {
        wait_cluster(shared.free[at.slot], at.parity ^ 1);
        if constexpr (R == Route::tma)
          fetch(shared, p, at.slot, row, col, step * kTileDepth, rank);
        else
          fetch_generic(shared, p, at.slot, row, col, step * kTileDepth);
      }
    }
  }

  TK_DEVICE static void release(Shared& shared, int slot) {  // one lane for each CTA that fills this slot
    if constexpr (fillers == 1) {
      if (lane_index() == 0) arrive(shared.free[slot]);
    } else {
      if (lane_index() < fillers) arrive_at(shared.free[slot], static_cast<u32>(lane_index()));
    }
  }

  TK_DEVICE static void consume(Shared& shared, const Params& p, int rank, int consumer) {
    const Schedule schedule(p);
    const int warp = warp_index() % 4;
    ring<kStages> at;
    for (int tile = schedule.first(); tile < schedule.rows() * schedule.cols(); tile += schedule.stride()) {
      rt_fl<16, kTileCols> d;
      zero(d);
      for (int step = 0; step < schedule.steps(); ++step, at.next()) {
        wait_cluster(shared.full[at.slot], at.parity);
        mma_fence();
        mma<MajorA, MajorB>(d, shared.a[at.slot][consumer], shared.b[at.slot]);
        mma_commit();
        mma_wait<1>();  // the product before this one is over: its slot is free
        if (step > 0) release(shared, (at.slot + kStages - 1) % kStages);
      }
      mma_wait();
      if (schedule.steps() > 0) release(shared, (at.slot + kStages - 1) % kStages);
      write_out<T>(shared.patch[4 * consumer + warp], d, p, schedule.row(tile, rank) + 64 * consumer + 16 * warp,
                   schedule.col(tile));
    }
  }

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int rank = cluster_rank();
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < kStages; ++slot) {
        init(shared.full[slot], R == Route::tma ? 1 : 128);
        init(shared.free[slot], 4 * kConsumers * fillers);
      }
      publish_barriers();
    }
    cluster_sync();
    if (warpgroup_index() == 0) {
      give_registers<R == Route::tma ? 40 : 72>();
      if (R == Route::generic || threadIdx.x == 0) produce(shared, p, rank);
    } else {
      take_registers<R == Route::tma ? 232 : 216>();
      consume(shared, p, rank, warpgroup_index() - 1);
    }
    __syncwarp();
    cluster_sync();
  }
};

}  // namespace tkpy::gemm

#define TKPY_GEMM(NAME, T, A, B, ROUTE)                                                    \
  extern "C" __global__ void __launch_bounds__(tkpy::gemm::kThreads, 1)                    \
      NAME(const __grid_constant__ tkpy::gemm::Params p) {                                 \
    tkpy::gemm::Gemm<tk::T, tk::Major::A, tk::Major::B, tkpy::gemm::Route::ROUTE>::run(p); \
  }
#define TKPY_GEMM_LAYOUTS(T, ROUTE)                    \
  TKPY_GEMM(gemm_##T##_mk_nk_##ROUTE, T, k, k, ROUTE)  \
  TKPY_GEMM(gemm_##T##_mk_kn_##ROUTE, T, k, mn, ROUTE) \
  TKPY_GEMM(gemm_##T##_km_nk_##ROUTE, T, mn, k, ROUTE) \
  TKPY_GEMM(gemm_##T##_km_kn_##ROUTE, T, mn, mn, ROUTE)

TKPY_GEMM_LAYOUTS(bf16, tma)
TKPY_GEMM_LAYOUTS(fp16, tma)
TKPY_GEMM_LAYOUTS(bf16, generic)
TKPY_GEMM_LAYOUTS(fp16, generic)
