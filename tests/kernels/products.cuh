// Every product of tk/mma.cuh as a kernel, for tests/kernels/test_products.py, which appends the list of them. Operands
// are small integers, so that sums are exact in every type.
#include "tk/tk.cuh"

using namespace tk;

template <class T, int Rows, int Cols, int Swizzle>
TK_DEVICE void fetch(st<T, Rows, Cols, Swizzle>& tile, const T* src) {
  for (int i = static_cast<int>(threadIdx.x); i < Rows * Cols; i += 128) tile.at(i / Cols, i % Cols) = src[i];
}

template <class T>
TK_DEVICE u32 bits_of(T value) {
  if constexpr (sizeof(T) == 4)
    return __float_as_uint(value.value);
  else if constexpr (is_int8<T>)
    return static_cast<unsigned char>(value);
  else
    return value.bits;
}

// A register operand, element by element, from a tile in global memory.
template <class Tile>
TK_DEVICE void gather(Tile& dst, const typename Tile::type* src, int pitch, int row) {
  using T = typename Tile::type;
  for (int b = 0; b < Tile::blocks; ++b)
    for (int w = 0; w < Tile::words; ++w) {
      u32 word = 0;
      for (int i = 0; i < Tile::per_word; ++i) {
        const int e = Tile::per_word * w + i;
        word |= bits_of(src[(row + Tile::row(b, e)) * pitch + Tile::col(b, e)]) << (8 * sizeof(T) * i);
      }
      if constexpr (is_same<typename Tile::word, float>)
        dst.x[b][w] = __uint_as_float(word);
      else
        dst.x[b][w] = word;
    }
}

template <class Tile>
TK_DEVICE void scatter(float* dst, const Tile& src, int row) {
  for (int b = 0; b < Tile::blocks; ++b)
    for (int e = 0; e < Tile::elements; ++e) {
      float value;
      if constexpr (is_16bit<typename Tile::type>)
        value = e % 2 ? ptx::high<fp16>(src.x[b][e / 2]) : ptx::low<fp16>(src.x[b][e / 2]);
      else
        value = static_cast<float>(src.x[b][e]);
      dst[(row + Tile::row(b, e)) * Tile::cols + Tile::col(b, e)] = value;
    }
}

// wgmma. The first product overwrites registers that were never set; the second accumulates: D = 2 A B.
template <class D, class A, class B, Major MajorA, Major MajorB, int N, int K, bool RegisterA>
TK_DEVICE void product(const A* a, const B* b, float* d) {
  constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
  __shared__ st<A, at ? K : 64, at ? 64 : K> a_tile;
  __shared__ st<B, bt ? K : N, bt ? N : K> b_tile;
  fetch(a_tile, a);
  fetch(b_tile, b);
  publish_tile();
  __syncthreads();
  rt<D, 16, N> result;
  rt<A, 16, K> fragment;
  if constexpr (RegisterA) gather(fragment, a, K, 16 * warp_index());
  mma_fence();
  for (int i = 0; i < 2; ++i) {
    if constexpr (RegisterA)
      mma<MajorA, MajorB>(result, fragment, b_tile, i > 0);
    else
      mma<MajorA, MajorB>(result, a_tile, b_tile, i > 0);
  }
  mma_commit();
  mma_wait();
  scatter(d, result, 16 * warp_index());
}

// mma.sync, 32 x 32, by one warp: D = 2 A B.
template <class D, class A, class B, Major MajorA, Major MajorB, int K>
TK_DEVICE void warp_product(const A* a, const B* b, float* d) {
  constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
  rt<A, at ? K : 32, at ? 32 : K, at ? Layout::col : Layout::row> left;
  rt<B, bt ? K : 32, bt ? 32 : K, bt ? Layout::col : Layout::row> right;
  rt<D, 32, 32> result;
  gather(left, a, at ? 32 : K, 0);
  gather(right, b, bt ? 32 : K, 0);
  mma<MajorA, MajorB>(result, left, right, false);
  mma<MajorA, MajorB>(result, left, right);
  scatter(d, result, 0);
}

#define WGMMA(NAME, D, A, B, MA, MB, N, K, REGISTER)                                                  \
  extern "C" __global__ void __launch_bounds__(128) NAME(const A* a, const B* b, float* d) {           \
    product<D, A, B, Major::MA, Major::MB, N, K, REGISTER>(a, b, d);                                   \
  }
#define MMA(NAME, D, A, B, MA, MB, K)                                                                 \
  extern "C" __global__ void __launch_bounds__(32) NAME(const A* a, const B* b, float* d) {            \
    warp_product<D, A, B, Major::MA, Major::MB, K>(a, b, d);                                           \
  }
