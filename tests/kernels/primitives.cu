// Tile primitives one at a time, for tests/kernels/test_primitives.py: masked loads, products in every storage order
// and swizzle, register operands, register tiles through shared memory, row reductions.
#include "tk/tk.cuh"

using namespace tk;

// D = A B of m x k and k x n, stored as MajorA and MajorB say; the tile is 64 x N x 64 and everything outside is zero.
template <class T, Major MajorA, Major MajorB, int N, int Swizzle>
TK_DEVICE void product(const T* a, const T* b, float* d, int m, int n, int k) {
  using A = st<T, 64, 64, Swizzle>;
  using B = st<T, MajorB == Major::k ? N : 64, MajorB == Major::k ? 64 : N, Swizzle>;
  __shared__ A a_tile;
  __shared__ B b_tile;
  constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
  load<warpgroup>(a_tile, view<const T>{a, at ? k : m, at ? m : k, at ? m : k}, 0, 0);
  load<warpgroup>(b_tile, view<const T>{b, bt ? k : n, bt ? n : k, bt ? n : k}, 0, 0);
  publish_tile();
  __syncthreads();
  rt_fl<16, N> result;
  mma_fence();
  mma<MajorA, MajorB>(result, a_tile, b_tile, false);  // overwrites: the registers were never set
  mma_commit();
  mma_wait();
  store(view<float>{d, m, n, n}, result, 16 * warp_index(), 0);
}

#define PRODUCT(NAME, T, A, B, N, SWIZZLE)                                                             \
  extern "C" __global__ void __launch_bounds__(128)                                                    \
      NAME##_##T##_##SWIZZLE(const T* a, const T* b, float* d, int m, int n, int k) {                  \
    product<T, Major::A, Major::B, N, SWIZZLE>(a, b, d, m, n, k);                                      \
  }
#define PRODUCTS(T, N, SWIZZLE)             \
  PRODUCT(ab, T, k, mn, N, SWIZZLE)         \
  PRODUCT(abt, T, k, k, N, SWIZZLE)         \
  PRODUCT(atb, T, mn, mn, N, SWIZZLE)       \
  PRODUCT(atbt, T, mn, k, N, SWIZZLE)
PRODUCTS(bf16, 128, 128)
PRODUCTS(bf16, 96, 64)
PRODUCTS(bf16, 48, 32)
PRODUCTS(fp16, 256, 128)

// D = A B with A in registers: shared -> rt -> wgmma.
extern "C" __global__ void __launch_bounds__(128) register_a(const bf16* a, const bf16* b, float* d) {
  __shared__ st<bf16, 64, 64> a_tile, b_tile;
  load<warpgroup>(a_tile, view<const bf16>{a, 64, 64, 64}, 0, 0);
  load<warpgroup>(b_tile, view<const bf16>{b, 64, 64, 64}, 0, 0);
  publish_tile();
  __syncthreads();
  rt_bf<16, 64> fragment;
  rt_fl<16, 64> result;
  load(fragment, a_tile, 16 * warp_index());
  mma_fence();
  mma_AB(result, fragment, b_tile, false);
  mma_commit();
  mma_wait();
  store(view<float>{d, 64, 64, 64}, result, 16 * warp_index(), 0);
}

// y = x through every road: view -> st -> rt (ldmatrix) -> fp32 -> rt -> st (stmatrix, another swizzle) -> view.
template <int SwizzleIn, int SwizzleOut>
TK_DEVICE void roundtrip(const bf16* x, bf16* y) {
  __shared__ st<bf16, 32, 64, SwizzleIn> in;
  __shared__ st<bf16, 32, 64, SwizzleOut> out;
  load(in, view<const bf16>{x, 32, 64, 64}, 0, 0);
  __syncwarp();
  rt_bf<32, 64> packed;
  rt_fl<32, 64> values;
  load(packed, in);
  copy(values, packed);
  copy(packed, values);
  store(out, packed);
  __syncwarp();
  for (int i = lane_index(); i < 32 * 64; i += 32) y[i] = out.at(i / 64, i % 64);
}
extern "C" __global__ void roundtrip_128_64(const bf16* x, bf16* y) { roundtrip<128, 64>(x, y); }
extern "C" __global__ void roundtrip_32_128(const bf16* x, bf16* y) { roundtrip<32, 128>(x, y); }
extern "C" __global__ void roundtrip_0_32(const bf16* x, bf16* y) { roundtrip<0, 32>(x, y); }

// Row maxima, row sums, and x scaled by its row's sum; rows, cols mask both loads and stores.
extern "C" __global__ void reductions(const float* x, float* best, float* total, float* scaled, int rows, int cols) {
  rt_fl<32, 72> values;
  rt_fl<32, 72>::per_row m, s;
  load(values, view<const float>{x, rows, cols, cols}, 0, 0);
  row_max(m, values);
  row_sum(s, values);
  mul(values, values, s);
  for (int b = 0; b < 2; ++b)
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * b + 8 * half + lane_index() / 4;
      if (lane_index() % 4 != 0 || row >= rows) continue;
      best[row] = m.x[2 * b + half];
      total[row] = s.x[2 * b + half];
    }
  store(view<float>{scaled, rows, cols, cols}, values, 0, 0);
}
