// gemm: C = act(A B + bias) + residual      for every group: A M x K, B K x N, C M x N, any sizes; a plain GEMM has one
// in   A, B bf16 or fp16, each with either of its two dimensions contiguous | bias [N], residual [M, N] optional
// out  C, the type of A, rows contiguous, any pitch; or fp32 sums over each of several shares of K
// groups  the group is the outermost coordinate of the tensor maps, and of C's tiles. Where groups are blocks of the
//      channels of one matrix, that is a stride: nothing is copied. Blocks of every so-manyth channel, or shuffled
//      ones, and blocks of which the last channels do not exist, go through `generic` (params.h, Blocks)
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
// limits  sm_90a; M, N, K and all channels below 2^31 - 512; A, B, C, bias and residual of one type
// cost  a group: bytes 2 (MK + KN + MN), flops 2 M N K; tiles of 256 columns: N = 192 issues a third more
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
    const Params& p;
    TK_DEVICE explicit Schedule(const Params& p_) : p(p_) {}
    TK_DEVICE int rows() const { return (p.m + kCluster * kTileRows - 1) / (kCluster * kTileRows); }
    TK_DEVICE int cols() const { return (p.n + kTileCols - 1) / kTileCols; }
    TK_DEVICE int tiles() const { return rows() * cols() * p.groups * p.shares; }
    TK_DEVICE int first() const { return static_cast<int>(blockIdx.x) / kCluster; }
    TK_DEVICE int stride() const { return static_cast<int>(gridDim.x) / kCluster; }
    TK_DEVICE Tile tile(int index, int rank) const {
      const int batch = index / (rows() * cols()), share = batch / p.groups, first = share * p.share_depth;
      const Tile2 at = grouped_tile(index % (rows() * cols()), rows(), cols(), kGroupRows);
      const int depth = min(p.share_depth, p.k - first);
      return {(at.row * kCluster + rank) * kTileRows, at.col * kTileCols, batch % p.groups, share, first,
              (depth + kTileDepth - 1) / kTileDepth};
    }
  };

  // One thread. Each CTA fetches its own A and half of B, and sends that half to both.
  TK_DEVICE static void fetch(Shared& shared, const Params& p, int slot, const Tile& t, int depth, int rank) {
    mbarrier& full = shared.full[slot];
    const gl<ATile, 3> a(p.a);
    const gl<BHalf, 3> b(p.b);
    arrive_expect(full, kConsumers * ATile::bytes + BTile::bytes);
    for (int i = 0; i < kConsumers; ++i) {
      if constexpr (MajorA == Major::k)
        load(shared.a[slot][i], a, {t.group, t.row + 64 * i, depth}, full);
      else
        load(shared.a[slot][i], a, {t.group, depth, t.row + 64 * i}, full);
    }
    BHalf& half = part<kCluster>(shared.b[slot], rank);
    const int half_col = t.col + rank * kTileCols / kCluster;
    if constexpr (MajorB == Major::k)
      load_multicast(half, b, {t.group, half_col, depth}, full, 0b11);
    else
      load_multicast(half, b, {t.group, depth, half_col}, full, 0b11);
  }

  // The tile from (row, col) of a group of x on, as it is stored: rows x cols, of which some columns may not exist.
  template <class Shared>
  TK_DEVICE static void load_blocks(Shared& dst, const Blocks& x, const Params& p, int group, int rows, int cols,
                                    int row, int col) {
    const T* data = static_cast<const T*>(x.data);
    if (!x.shuffled) {
      const long long left = x.end - group * x.block;  // columns f that exist from this group on
      const int existing = left >= static_cast<long long>(cols) * x.step ? cols : left <= 0 ? 0 : (left - 1) / x.step + 1;
      load<warpgroup>(dst, view<const T>{data + group * x.block, rows, existing, x.pitch, x.step}, row, col);
      return;
    }
#pragma unroll 1
    for (int i = warpgroup::thread(); i < Shared::rows * Shared::cols; i += warpgroup::threads) {
      const int r = i / Shared::cols, c = i % Shared::cols;
      const long long f = place(x, p, group, col + c);
      const bool exists = row + r < rows && col + c < cols && f < x.end;
      dst.at(r, c) = exists ? data[(row + r) * x.pitch + f] : T{};
    }
  }

  // All 128 threads of the producer.
  TK_DEVICE static void fetch_generic(Shared& shared, const Params& p, int slot, const Tile& t, int depth) {
    constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
    for (int i = 0; i < kConsumers; ++i) {
      const int row = t.row + 64 * i;
      load_blocks(shared.a[slot][i], p.a_data, p, t.group, at ? p.k : p.m, at ? p.m : p.k, at ? depth : row,
                  at ? row : depth);
    }
    load_blocks(shared.b[slot], p.b_data, p, t.group, bt ? p.k : p.n, bt ? p.n : p.k, bt ? depth : t.col,
                bt ? t.col : depth);
    publish_tile();
    arrive(shared.full[slot]);
  }

  TK_DEVICE static void produce(Shared& shared, const Params& p, int rank) {
    const Schedule schedule(p);
    ring<kStages> at;
    for (int index = schedule.first(); index < schedule.tiles(); index += schedule.stride()) {
      const Tile t = schedule.tile(index, rank);
      for (int step = 0; step < t.steps; ++step, at.next()) {
        wait_cluster(shared.free[at.slot], at.parity ^ 1);
        if constexpr (R == Route::tma)
          fetch(shared, p, at.slot, t, t.first + step * kTileDepth, rank);
        else
          fetch_generic(shared, p, at.slot, t, t.first + step * kTileDepth);
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
    for (int index = schedule.first(); index < schedule.tiles(); index += schedule.stride()) {
      const Tile t = schedule.tile(index, rank);
      rt_fl<16, kTileCols> d;
      zero(d);
      for (int step = 0; step < t.steps; ++step, at.next()) {
        wait_cluster(shared.full[at.slot], at.parity);
        mma_fence();
        mma<MajorA, MajorB>(d, shared.a[at.slot][consumer], shared.b[at.slot]);
        mma_commit();
        mma_wait<1>();  // the product before this one is over: its slot is free
        if (step > 0) release(shared, (at.slot + kStages - 1) % kStages);
      }
      mma_wait();
      if (t.steps > 0) release(shared, (at.slot + kStages - 1) % kStages);
      write_out<T>(shared.patch[4 * consumer + warp], d, p, t, t.row + 64 * consumer + 16 * warp);
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
