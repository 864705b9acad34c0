// Asynchronous copies, barriers and the producer-consumer template, for tests/kernels/test_copies.py.
#include "tk/tk.cuh"

using namespace tk;

TK_DEVICE void start(mbarrier& bar, u32 arrivals = 1) {
  if (threadIdx.x == 0) {
    init(bar, arrivals);
    publish_barriers();
  }
  __syncthreads();
}

// ---- Tensor copies: the box at `from` of one tensor to `to` of another, 1 to 5 dimensions ------------------------
template <class Tile, int Rank, bool Policy>
TK_DEVICE void copy_box(const tensor_map& in, const tensor_map& out, const int (&from)[5], const int (&to)[5]) {
  __shared__ Tile tile;
  __shared__ mbarrier full;
  int first[Rank], second[Rank];
  for (int d = 0; d < Rank; ++d) first[d] = from[d], second[d] = to[d];
  start(full);
  if (threadIdx.x != 0) return;
  const gl<Tile, Rank> src(in), dst(out);
  prefetch(src, first);
  arrive_expect(full, Tile::bytes);
  if constexpr (Policy)
    load(tile, src, first, full, evict_first());
  else
    load(tile, src, first, full);
  wait(full, 0);
  if constexpr (Policy)
    store(dst, tile, second, evict_last());
  else
    store(dst, tile, second);
  commit_stores();
  wait_stores();
}
#define COPY(RANK, TILE)                                                                                              \
  extern "C" __global__ void copy_##RANK(const __grid_constant__ tensor_map in, const __grid_constant__ tensor_map out, \
                                         int a, int b, int c, int d, int e, int v, int w, int x, int y, int z) {      \
    copy_box<TILE, RANK, RANK % 2 == 0>(in, out, {a, b, c, d, e}, {v, w, x, y, z});                                   \
  }
using Vector = st<int, 8, 16, 0>;
using Wide = st<bf16, 16, 128, 64>;  // four panels
using Narrow = st<float, 8, 8, 32>;
COPY(1, Vector)
COPY(2, Wide)
COPY(3, Wide)
COPY(4, Narrow)
COPY(5, Narrow)

// ---- out = out op in, by tile and by stretch ----------------------------------------------------------------------
#define REDUCE(T, OP)                                                                                         \
  extern "C" __global__ void tile_##OP##_##T(const __grid_constant__ tensor_map in,                           \
                                             const __grid_constant__ tensor_map out) {                        \
    using Tile = st<T, 8, 16, 0>;                                                                             \
    __shared__ Tile tile;                                                                                     \
    __shared__ mbarrier full;                                                                                 \
    start(full);                                                                                              \
    if (threadIdx.x != 0) return;                                                                             \
    arrive_expect(full, Tile::bytes);                                                                         \
    load(tile, gl<Tile>(in), {0, 0}, full);                                                                   \
    wait(full, 0);                                                                                            \
    store_##OP(gl<Tile>(out), tile, {0, 0});                                                                  \
    commit_stores();                                                                                          \
    wait_stores();                                                                                            \
  }                                                                                                           \
  extern "C" __global__ void bulk_##OP##_##T(const T* in, T* out) {                                           \
    __shared__ alignas(16) T stretch[128];                                                                    \
    __shared__ mbarrier full;                                                                                 \
    start(full);                                                                                              \
    if (threadIdx.x != 0) return;                                                                             \
    bulk_prefetch(in, 128);                                                                                   \
    arrive_expect(full, sizeof(stretch));                                                                     \
    bulk_load(stretch, in, 128, full);                                                                        \
    wait(full, 0);                                                                                            \
    bulk_##OP(out, stretch, 128);                                                                             \
    commit_stores();                                                                                          \
    wait_stores();                                                                                            \
  }
REDUCE(float, add)
REDUCE(bf16, add)
REDUCE(bf16, min)
REDUCE(bf16, max)
REDUCE(fp16, add)
REDUCE(fp16, min)
REDUCE(fp16, max)
REDUCE(int, add)
REDUCE(int, min)
REDUCE(int, max)
REDUCE(int, and)
REDUCE(int, or)
REDUCE(int, xor)
REDUCE(u32, inc)
REDUCE(u32, dec)

// ---- Clusters: CTA 0 multicasts x to both by tile and by stretch; each sends what it has to the other --------------
extern "C" __global__ void __cluster_dims__(2, 1, 1)
    across(const __grid_constant__ tensor_map map, const float* x, float* y) {
  using Tile = st<float, 8, 16, 0>;
  __shared__ Tile tile;
  __shared__ alignas(16) float stretch[128], mine[128], received[128];
  __shared__ mbarrier full, sent, asked;
  const u32 rank = static_cast<u32>(cluster_rank());
  if (threadIdx.x == 0) {
    init(full, 1);
    init(sent, 1);
    init(asked, 2);
    publish_barriers();
  }
  cluster_arrive();
  for (int i = static_cast<int>(threadIdx.x); i < 128; i += 32) mine[i] = 1000.0f * static_cast<float>(rank) + i;
  publish_tile();
  __syncwarp();  // written after this warp arrived: the cluster's barrier orders none of it
  cluster_wait();
  if (threadIdx.x == 0) {
    arrive_expect(full, Tile::bytes + sizeof(stretch));
    if (rank == 0) {
      load_multicast(tile, gl<Tile>(map), {0, 0}, full, 0b11);
      bulk_load_multicast(stretch, x, 128, full, 0b11);
    }
    arrive_expect_at(sent, sizeof(received), rank ^ 1);  // the sender says what it will send
    bulk_send(received, mine, 128, sent, rank ^ 1);
    arrive_at(asked, 0);
    hand_back_at(asked, 1);
  }
  __syncwarp();
  wait_cluster(full, 0);
  wait_cluster(sent, 0);
  wait_cluster(asked, 0);
  for (int i = static_cast<int>(threadIdx.x); i < 128; i += 32) {
    float* out = y + 384 * rank + i;
    out[0] = tile.at(i / 16, i % 16);
    out[128] = stretch[i];
    out[256] = received[i];
  }
  cluster_sync();
}

// Lane i of CTA r writes 16 bytes to CTA (r + i) % 4, row r of what it has.
extern "C" __global__ void __cluster_dims__(4, 1, 1) scatter(uint4* y) {
  __shared__ alignas(16) uint4 received[4][32];
  const u32 rank = static_cast<u32>(cluster_rank()), lane = threadIdx.x;
  for (int row = 0; row < 4; ++row) received[row][lane] = make_uint4(0, 0, 0, 0);
  cluster_sync();
  const u32 to = ptx::mapa(ptx::shared_address(&received[rank][lane]), (rank + lane) % 4);
  ptx::st_cluster_v4(to, make_uint4(rank + 1, lane, rank * lane, ~lane));
  cluster_sync();
  for (int row = 0; row < 4; ++row) y[32 * (4 * rank + row) + lane] = received[row][lane];
}

// ---- Barriers: four warps; counts, leaving, bytes announced apart, a second life, named barriers with arrive -------
extern "C" __global__ void __launch_bounds__(128) barriers(const int* x, int* y) {
  __shared__ mbarrier turn, bytes;
  __shared__ alignas(16) int value[128];
  const int thread = static_cast<int>(threadIdx.x), w = warp_index();
  if (thread == 0) {
    init(turn, 5);
    init(bytes, 1);
    publish_barriers();
  }
  __syncthreads();
  // First phase: two from warp 0, one from each other warp; warp 3 leaves with its own. Second: four are left,
  // one from each warp, or a slow one would find the phase after the next.
  if (lane_index() == 0) {
    if (w == 0) arrive(turn, 2);
    if (w == 1 || w == 2) arrive(turn);
    if (w == 3) leave(turn);
  }
  while (!passed(turn, 0)) {
  }
  if (lane_index() == 0) arrive(turn);
  wait(turn, 1);
  if (thread == 0) {
    expect(bytes, 256);
    bulk_load(value, x, 64, bytes);
    expect(bytes, 256);
    bulk_load(value + 64, x + 64, 64, bytes);
    arrive(bytes);
  }
  wait(bytes, 0);
  // Warps 0, 1 write what 2, 3 read: the writers go on, the readers wait.
  if (w < 2) {
    value[thread] += value[thread + 64];
    arrive(1, 128);
  } else {
    sync(1, 128);
    y[thread - 64] = value[thread - 64];
  }
  __syncthreads();
  if (thread == 0) {
    end(turn);
    init(turn, 1);
    arrive(turn);
    y[64] = passed(turn, 0) && !passed(turn, 1);
  }
}

// ---- The template: C = A B^T, one 64 x 64 tile a consumer -----------------------------------------------------------
struct GemmWork {
  struct Slot {
    st<bf16, 64, 64> a[2], b;
  };
  struct Scratch {
    st<bf16, 64, 64> c;
  };
  struct State {
    rt_fl<16, 64> d;
  };
  static constexpr int stages = 3, consumers = 2, producer_registers = 40, consumer_registers = 232;
  gl<st<bf16, 64, 64>> a, b, c;
  int m, n, k;

  TK_DEVICE int cols() const { return (n + 63) / 64; }
  TK_DEVICE int tasks() const { return (m + 127) / 128 * cols(); }
  TK_DEVICE int steps(int) const { return (k + 63) / 64; }
  TK_DEVICE int row(int task, int consumer) const { return task / cols() * 128 + 64 * consumer; }
  TK_DEVICE void load(Slot& slot, mbarrier& full, int task, int step) const {
    arrive_expect(full, sizeof(Slot));
    for (int i = 0; i < 2; ++i) tk::load(slot.a[i], a, {row(task, i), 64 * step}, full);
    tk::load(slot.b, b, {task % cols() * 64, 64 * step}, full);
  }
  TK_DEVICE void begin(State& state, int, int) const { zero(state.d); }
  TK_DEVICE void step(State& state, Slot& slot, int, int, int consumer) const {
    mma_fence();
    mma_ABt(state.d, slot.a[consumer], slot.b);
    mma_commit();
  }
  TK_DEVICE void finish(State& state, Scratch& scratch, int task, int consumer) const {
    rt_bf<16, 64> out;
    copy(out, state.d);
    if (threadIdx.x % 128 == 0) wait_stores_read();
    sync(1 + consumer, 128);
    store(scratch.c, out, 16 * (warp_index() % 4));
    publish_tile();
    sync(1 + consumer, 128);
    if (threadIdx.x % 128 == 0) {
      tk::store(c, scratch.c, {row(task, consumer), task % cols() * 64});
      commit_stores();
    }
  }
};
using GemmKernel = specialised<GemmWork>;
extern "C" __global__ void __launch_bounds__(GemmKernel::threads, 1)
    pipeline(const __grid_constant__ tensor_map a, const __grid_constant__ tensor_map b,
             const __grid_constant__ tensor_map c, int m, int n, int k) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const GemmWork work{gl<st<bf16, 64, 64>>(a), gl<st<bf16, 64, 64>>(b), gl<st<bf16, 64, 64>>(c), m, n, k};
  GemmKernel::run(*reinterpret_cast<GemmKernel::Shared*>(memory), work);
  wait_stores();
}
static_assert(sizeof(GemmKernel::Shared) == 91136, "test_copies.py asks for so much");
