// gemm: C = act(A B + bias) + residual      for every group: A M x K, B K x N, C M x N, any sizes; a plain GEMM has one
// in   A, B bf16 or fp16, each with either of its two dimensions contiguous | bias [N], residual [M, N] optional
// gated  C = act(A B) * (A' B2): a tile is 128 columns of both products; B and B2 stored with k contiguous, A' = A
//      (`shared`), or another block of its channels (`two`: group g's gate comes from block g / 2, its value from block
//      (groups + g) / 2, Monarch Mixer's MLP). Both products are written only where the backward wants them
// slopes  dh = A B is not written: with the gate and the value that were kept it becomes dgate, dvalue and h (slopes.cuh)
// pair  C = A B + A' B2, one product over two parts of K: A' is A's second group
// out  C, the type of A, rows contiguous, any pitch; or fp32 sums over each of several shares of K
// groups  the group is the outermost coordinate of the tensor maps, and of C's tiles. Where groups are blocks of the
//      channels of one matrix, that is a stride: nothing is copied. Blocks of every so-manyth channel, or shuffled
//      ones, and blocks of which the last channels do not exist, go through `generic` (params.h, Blocks)
// kernels  gemm_<bf16|fp16>_<mk|km>_<nk|kn>_<tma|generic>: km: A is stored with m contiguous; kn: B with n contiguous
//          gemm_gated_<bf16|fp16>_<shared|two>_<tma|generic>: three slots where there are two A
//          gemm_gated_<bf16|fp16>_slopes_<tma|generic>: A as mk, B as kn
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
#pragma once

#include "slopes.cuh"

namespace tkpy::gemm {

enum class Route { tma, generic };
// Both products of the same A, or of two blocks of its channels; or one product, dh, and on its way out the gate's slopes.
enum class Gate { none, shared, two, slopes };

template <class T, Major MajorA, Major MajorB, Route R, Gate G = Gate::none>
struct Gemm {
  static constexpr bool gated = G == Gate::shared || G == Gate::two;
  static_assert(!gated || (MajorA == Major::k && MajorB == Major::k), "gated kernels read A and B along K");
  static constexpr int inputs = G == Gate::two ? 2 : 1, stages = G == Gate::two ? kGatedStages : kStages;
  static constexpr int cols = gated ? kTileCols / 2 : kTileCols;  // of C, a tile
  using ATile = st<T, 64, 64>;  // 64 x 64 whichever way it is stored
  using BTile = st<T, MajorB == Major::k ? kTileCols : kTileDepth, MajorB == Major::k ? kTileDepth : kTileCols>;
  using BHalf = part_t<kCluster, BTile>;
  static constexpr int fillers = R == Route::tma ? kCluster : 1;  // CTAs that write into one slot

  struct Shared {
    ATile a[stages][kConsumers * inputs];
    BTile b[stages];
    float patch[4 * kConsumers][16 * 64];
    mbarrier full[stages], free[stages];
  };
  static constexpr unsigned bytes = G == Gate::two ? kGatedSharedBytes : kSharedBytes;
  static_assert(__builtin_offsetof(Shared, free) + sizeof(Shared::free) == bytes,
                "the launcher asks for kSharedBytes, kGatedSharedBytes: params.h and Shared must agree");
  static_assert(bytes <= 232448, "a CTA has at most 227 KiB of shared memory");

  struct Schedule {
    const Params& p;
    TK_DEVICE explicit Schedule(const Params& p_) : p(p_) {}
    TK_DEVICE int rows() const { return (p.m + kCluster * kTileRows - 1) / (kCluster * kTileRows); }
    TK_DEVICE int across() const { return (p.n + cols - 1) / cols; }
    TK_DEVICE int tiles() const { return rows() * across() * p.groups * p.shares; }
    TK_DEVICE int first() const { return static_cast<int>(blockIdx.x) / kCluster; }
    TK_DEVICE int stride() const { return static_cast<int>(gridDim.x) / kCluster; }
    TK_DEVICE Tile tile(int index, int rank) const {
      const int batch = index / (rows() * across()), share = batch / p.groups, first = share * p.share_depth;
      const Tile2 at = grouped_tile(index % (rows() * across()), rows(), across(), kGroupRows);
      const int depth = min(p.share_depth, p.k - first);
      return {(at.row * kCluster + rank) * kTileRows, at.col * cols, batch % p.groups, share, first,
              (depth + kTileDepth - 1) / kTileDepth * (p.pair ? 2 : 1)};
    }
  };

  // Where in A a step of a tile begins: of a pair, in which of its parts.
  struct Step {
    int depth, part;
    TK_DEVICE Step(const Params& p, const Tile& t, int step) {
      const int steps = !gated && p.pair ? t.steps / 2 : t.steps;
      part = !gated && step >= steps;
      depth = t.first + (step - part * steps) * kTileDepth;
    }
  };

  // The block of A's channels that a group's gate (input 0) or value (input 1) is made of: groups are halves of them.
  TK_DEVICE static int block_of(const Params& p, const Tile& t, int input, int part) {
    return G == Gate::two ? (t.group + input * p.groups) / 2 : t.group + part;
  }

  // One thread. Each CTA fetches its own A and half of B, and sends that half to both: of a gated kernel, the first CTA
  // the gate's B and the second the value's.
  TK_DEVICE static void fetch(Shared& shared, const Params& p, int slot, const Tile& t, Step step, int rank) {
    mbarrier& full = shared.full[slot];
    const int depth = step.depth;
    const gl<ATile, 3> a(p.a);
    const gl<BHalf, 3> b((gated ? rank : step.part) == 1 ? p.b2 : p.b);
    arrive_expect(full, inputs * kConsumers * ATile::bytes + BTile::bytes);
    for (int i = 0; i < inputs * kConsumers; ++i) {
      const int group = block_of(p, t, i / kConsumers, step.part), row = t.row + 64 * (i % kConsumers);
      if constexpr (MajorA == Major::k)
        load(shared.a[slot][i], a, {group, row, depth}, full);
      else
        load(shared.a[slot][i], a, {group, depth, row}, full);
    }
    BHalf& half = part<kCluster>(shared.b[slot], rank);
    const int half_col = gated ? t.col : t.col + rank * kTileCols / kCluster;
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
  TK_DEVICE static void fetch_generic(Shared& shared, const Params& p, int slot, const Tile& t, Step step) {
    constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
    const int depth = step.depth;
    for (int i = 0; i < inputs * kConsumers; ++i) {
      const int group = block_of(p, t, i / kConsumers, step.part), row = t.row + 64 * (i % kConsumers);
      load_blocks(shared.a[slot][i], p.a_data, p, group, at ? p.k : p.m, at ? p.m : p.k, at ? depth : row,
                  at ? row : depth);
    }
    if constexpr (gated) {
      load_blocks(part<2>(shared.b[slot], 0), p.b_data, p, t.group, p.n, p.k, t.col, depth);
      load_blocks(part<2>(shared.b[slot], 1), p.b2_data, p, t.group, p.n, p.k, t.col, depth);
    } else {
      load_blocks(shared.b[slot], step.part == 1 ? p.b2_data : p.b_data, p, t.group, bt ? p.k : p.n, bt ? p.n : p.k, bt ? depth : t.col,
                  bt ? t.col : depth);
    }
    publish_tile();
    arrive(shared.full[slot]);
  }

  TK_DEVICE static void produce(Shared& shared, const Params& p, int rank) {
    const Schedule schedule(p);
    ring<stages> at;
    for (int index = schedule.first(); index < schedule.tiles(); index += schedule.stride()) {
      const Tile t = schedule.tile(index, rank);
      for (int step = 0; step < t.steps; ++step, at.next()) {
        wait_cluster(shared.free[at.slot], at.parity ^ 1);
        if constexpr (R == Route::tma)
          fetch(shared, p, at.slot, t, Step(p, t, step), rank);
        else
          fetch_generic(shared, p, at.slot, t, Step(p, t, step));
      }
    }
  }

  TK_DEVICE static void release(Shared& shared, int slot) {  // one lane for each CTA that fills this slot
    if constexpr (fillers == 1) {
      if (lane_index() == 0) arrive(shared.free[slot]);
    } else {
      if (lane_index() < fillers) hand_back_at(shared.free[slot], static_cast<u32>(lane_index()));
    }
  }

  TK_DEVICE static void consume(Shared& shared, const Params& p, int rank, int consumer) {
    const Schedule schedule(p);
    const int warp = warp_index() % 4;
    ring<stages> at;
    for (int index = schedule.first(); index < schedule.tiles(); index += schedule.stride()) {
      const Tile t = schedule.tile(index, rank);
      rt_fl<16, cols> d[gated ? 2 : 1];
      zero(d[0]);
      if constexpr (gated) zero(d[1]);
      for (int step = 0; step < t.steps; ++step, at.next()) {
        wait_cluster(shared.full[at.slot], at.parity);
        mma_fence();
        if constexpr (gated) {
          mma_ABt(d[0], shared.a[at.slot][consumer], part<2>(shared.b[at.slot], 0));
          mma_ABt(d[1], shared.a[at.slot][kConsumers * (inputs - 1) + consumer], part<2>(shared.b[at.slot], 1));
        } else {
          mma<MajorA, MajorB>(d[0], shared.a[at.slot][consumer], shared.b[at.slot]);
        }
        mma_commit();
        mma_wait<1>();  // the product before this one is over: its slot is free
        if (step > 0) release(shared, (at.slot + stages - 1) % stages);
      }
      mma_wait();
      if (t.steps > 0) release(shared, (at.slot + stages - 1) % stages);
      float* const patch = shared.patch[4 * consumer + warp];
      const int row = t.row + 64 * consumer + 16 * warp;
      if constexpr (gated)
        write_gated<T>(patch, d[0], d[1], p, t, row);
      else if constexpr (G == Gate::slopes)
        write_slopes<T>(patch, d[0], p, t, row);
      else
        write_out<T>(patch, d[0], p, t, row);
    }
  }

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int rank = cluster_rank();
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < stages; ++slot) {
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
