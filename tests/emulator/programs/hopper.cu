// Programs for sm_90a: copies by tensor maps, clusters, tensor cores. One kernel each, checked by test_hopper.py.
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
struct alignas(64) Map { u64 opaque[16]; };
#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__
#define MAP const __grid_constant__ Map
DEVICE u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory"); }
DEVICE void expect(u32 bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory"); }
DEVICE void wait(u32 bar, u32 parity) {
  u32 done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(bar), "r"(parity) : "memory");
  } while (!done);
}
DEVICE void stored() { asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory"); }
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEVICE u32 cluster_rank() { u32 r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
DEVICE u32 cluster_size() { u32 r; asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r)); return r; }
DEVICE u32 mapa(u32 at, u32 rank) { u32 r; asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(at), "r"(rank)); return r; }

// ---- one box of a tensor of 1 to 5 dimensions, outside it zeros ----
#define TILE(D, COORDS)                                                                                        \
  KERNEL tile##D(float* out, MAP map, int words, int c0, int c1, int c2, int c3, int c4) {                     \
    __shared__ __align__(128) float s[512];                                                                    \
    __shared__ u64 bar;                                                                                        \
    if (threadIdx.x == 0) {                                                                                    \
      init(smem(&bar), 1);                                                                                     \
      expect(smem(&bar), 4 * words);                                                                           \
      asm volatile("cp.async.bulk.tensor." #D "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "    \
                   "[%0], [%1, " COORDS "], [%2];" ::"r"(smem(s)), "l"(&map), "r"(smem(&bar)), "r"(c0), "r"(c1), \
                   "r"(c2), "r"(c3), "r"(c4) : "memory");                                                      \
    }                                                                                                          \
    __syncwarp();                                                                                              \
    wait(smem(&bar), 0);                                                                                       \
    for (int i = threadIdx.x; i < words; i += 32) out[i] = s[i];                                               \
  }
TILE(1, "{%3}")
TILE(2, "{%3, %4}")
TILE(3, "{%3, %4, %5}")
TILE(4, "{%3, %4, %5, %6}")
TILE(5, "{%3, %4, %5, %6, %7}")

KERNEL add_tiles(MAP map, const float* x, int step) {  // every block adds its 8 x 8 tile, all overlapping
  __shared__ __align__(128) float s[64];
  s[threadIdx.x] = x[threadIdx.x] * (blockIdx.x + 1);
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];"
                 ::"l"(&map), "r"((int)blockIdx.x * step - 3), "r"((int)blockIdx.x * step - 1), "r"(smem(s)) : "memory");
    stored();
  }
}
KERNEL bulk_add(int* out, const int* x) {  // cp.reduce.async.bulk without a tensor map
  __shared__ __align__(16) int s[64];
  s[threadIdx.x] = x[threadIdx.x] + blockIdx.x;
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s32 [%0], [%1], 256;" ::"l"(out), "r"(smem(s)) : "memory");
    stored();
  }
}

// ---- clusters ----
KERNEL multicast(float* out, const float* x) {  // each of n blocks fetches 1/n of 128 floats and sends it to all
  __shared__ __align__(128) float s[128];
  __shared__ u64 bar;
  u32 rank = cluster_rank(), n = cluster_size(), bytes = 512 / n;
  if (threadIdx.x == 0) {
    init(smem(&bar), 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    expect(smem(&bar), 512);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 ::"r"(smem(s) + rank * bytes), "l"((const char*)x + rank * bytes), "r"(bytes), "r"(smem(&bar)), "h"((u16)((1 << n) - 1)) : "memory");
  }
  __syncwarp();
  wait(smem(&bar), 0);
  out[blockIdx.x * 128 + threadIdx.x] = s[threadIdx.x] + rank;
  cluster_sync();
}
KERNEL spread_histogram(u32* out, const unsigned char* x, int n) {  // 256 bins over the cluster's shared memories
  __shared__ u32 bins[256];
  u32 rank = cluster_rank(), mine = 256 / cluster_size();
  for (u32 i = threadIdx.x; i < mine; i += blockDim.x) bins[i] = 0;
  cluster_sync();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], 1;" ::"r"(mapa(smem(&bins[x[i] % mine]), x[i] / mine)) : "memory");
  cluster_sync();
  for (u32 i = threadIdx.x; i < mine; i += blockDim.x) out[rank * mine + i] = bins[i];
}
KERNEL ring_pass(int* out, int rounds) {  // a value goes round: remote store, then a remote arrive
  __shared__ int box[2];
  __shared__ u64 bars[2];
  u32 rank = cluster_rank(), next = (rank + 1) % cluster_size();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) init(smem(&bars[i]), 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    int value = rank * 100;
    for (int r = 0; r < rounds; ++r) {
      asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(mapa(smem(&box[r % 2]), next)), "r"(value + 1) : "memory");
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(mapa(smem(&bars[r % 2]), next)) : "memory");
      wait(smem(&bars[r % 2]), r / 2 % 2);
      value = ((volatile int*)box)[r % 2];
      asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
    }
    out[rank] = value;
  } else {
    for (int r = 0; r < rounds; ++r) asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
  }
}
KERNEL remote_stores(u32* out) {  // st.async: every block writes one row into every other, counted in bytes
  __shared__ __align__(16) u32 rows[4][32];
  __shared__ u64 bar;
  u32 rank = cluster_rank(), n = cluster_size();
  if (threadIdx.x == 0) {
    init(smem(&bar), 1);
    expect(smem(&bar), 128 * n);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  for (u32 to = 0; to < n; ++to)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
                 ::"r"(mapa(smem(&rows[rank][threadIdx.x]), to)), "r"(1000 * rank + 100 * to + threadIdx.x), "r"(mapa(smem(&bar), to)) : "memory");
  wait(smem(&bar), 0);
  u32 sum = 0;
  for (u32 from = 0; from < n; ++from) sum += rows[from][31 - threadIdx.x];
  out[32 * rank + threadIdx.x] = sum;
  cluster_sync();
}

// ---- mma.sync: D[16, 8] = A[16, K] B[8, K]^T, rows of `steps` times 32 bytes; the layout in 32-bit words is one for all ----
#define MMA(NAME, INSTRUCTION, C, T)                                                                              \
  KERNEL mma_##NAME(T* d, const u32* a, const u32* b, int steps) {                                                \
    int g = threadIdx.x / 4, t = threadIdx.x % 4, pitch = 8 * steps;                                              \
    T c[4] = {0, 0, 0, 0};                                                                                        \
    for (int k = 0; k < steps; ++k) {                                                                             \
      const u32 *x = a + g * pitch + 8 * k + t, *y = b + g * pitch + 8 * k + t;                                   \
      asm volatile("mma.sync.aligned." INSTRUCTION " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                   : "+" C(c[0]), "+" C(c[1]), "+" C(c[2]), "+" C(c[3])                                           \
                   : "r"(x[0]), "r"(x[8 * pitch]), "r"(x[4]), "r"(x[8 * pitch + 4]), "r"(y[0]), "r"(y[4]));       \
    }                                                                                                             \
    T* to = d + 8 * g + 2 * t;                                                                                    \
    to[0] = c[0], to[1] = c[1], to[64] = c[2], to[65] = c[3];                                                     \
  }
MMA(bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", "f", float)
MMA(fp16, "m16n8k16.row.col.f32.f16.f16.f32", "f", float)
MMA(tf32, "m16n8k8.row.col.f32.tf32.tf32.f32", "f", float)
MMA(int8, "m16n8k32.row.col.s32.s8.s8.s32", "r", int)
MMA(e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32", "f", float)

// ---- wgmma: D[64, 16] = A[64, K] B[16, K]^T, rows of `steps` times 128 bytes under the 128-byte swizzle ----
// A producer warp (warp 4) fills two slots; the warpgroup multiplies, 32 bytes of K an instruction.
DEVICE void load_tile(u32 to, const Map* map, int x, u32 bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               ::"r"(to), "l"(map), "r"(x), "r"(0), "r"(bar) : "memory");
}
DEVICE u64 descriptor(u32 at) { return (u64)(at >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
#define D8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define WGMMA(NAME, SHAPE, TYPES, TAIL, ELEMENTS)                                                                  \
  KERNEL wgmma_##NAME(float* out, MAP am, MAP bm, int steps) {                                                     \
    __shared__ __align__(1024) unsigned char a[2][8192];                                                           \
    __shared__ __align__(1024) unsigned char b[2][2048];                                                           \
    __shared__ u64 bars[4];                                                                                        \
    u32 full = smem(bars), empty = full + 16;                                                                      \
    if (threadIdx.x == 0)                                                                                          \
      for (int i = 0; i < 2; ++i) init(full + 8 * i, 1), init(empty + 8 * i, 4);                                   \
    __syncthreads();                                                                                               \
    if (threadIdx.x >= 128) {                                                                                      \
      if (threadIdx.x == 128) for (int k = 0; k < steps; ++k) {                                                    \
        u32 at = k % 2;                                                                                            \
        wait(empty + 8 * at, k / 2 % 2 ^ 1);                                                                       \
        expect(full + 8 * at, 8192 + 2048);                                                                        \
        load_tile(smem(a[at]), &am, ELEMENTS * k, full + 8 * at);                                                  \
        load_tile(smem(b[at]), &bm, ELEMENTS * k, full + 8 * at);                                                  \
      }                                                                                                            \
      return;                                                                                                      \
    }                                                                                                              \
    float d[8];                                                                                                    \
    for (int k = 0; k < steps; ++k) {                                                                              \
      u32 at = k % 2;                                                                                              \
      wait(full + 8 * at, k / 2 % 2);                                                                              \
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");                                                      \
      for (int j = 0; j < 4; ++j)                                                                                  \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0;\n"                                                    \
                     "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p" TAIL "; }" \
                     : D8 : "l"(descriptor(smem(a[at]) + 32 * j)), "l"(descriptor(smem(b[at]) + 32 * j)), "r"(k + j) : "memory"); \
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");                                               \
      asm volatile("wgmma.wait_group.sync.aligned 0;" : D8::"memory");                                             \
      if (threadIdx.x % 32 == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty + 8 * at) : "memory"); \
    }                                                                                                              \
    float* to = out + (threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) * 16 + threadIdx.x % 4 * 2;                   \
    for (int j = 0; j < 2; ++j)                                                                                    \
      to[8 * j] = d[4 * j], to[8 * j + 1] = d[4 * j + 1], to[8 * j + 128] = d[4 * j + 2], to[8 * j + 129] = d[4 * j + 3]; \
  }
WGMMA(bf16, "m64n16k16", "bf16.bf16", ", 1, 1, 0, 0", 64)
WGMMA(fp16, "m64n16k16", "f16.f16", ", 1, 1, 0, 0", 64)
WGMMA(tf32, "m64n16k8", "tf32.tf32", ", 1, 1", 32)
WGMMA(e4m3, "m64n16k32", "e4m3.e4m3", ", 1, 1", 128)
