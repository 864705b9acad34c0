// Matrix products of a warpgroup: D += A B, with D spread over its four warps (rt_fl<16, N> each, rows 16 w ..), A and
// B shared tiles, or A in registers. The letters say how the operands are stored:
//   mma_AB   A [64, K]  B [K, N]        mma_ABt   A [64, K]  B [N, K]
//   mma_AtB  A [K, 64]  B [K, N]        mma_AtBt  A [K, 64]  B [N, K]
// Asynchronous: mma_fence() before the first product and after registers were touched; mma_commit() closes a group;
// mma_wait<n>() until at most n groups are in flight. Until then D, and A in registers, must not be touched.
#pragma once

#include "ptx.cuh"
#include "ptx_wgmma.cuh"
#include "tiles.cuh"

namespace tk {

TK_DEVICE void mma_fence() { ptx::wgmma_fence(); }
TK_DEVICE void mma_commit() { ptx::wgmma_commit_group(); }
template <int Pending = 0>
TK_DEVICE void mma_wait() {
  ptx::wgmma_wait_group<Pending>();
}

template <class Tile, Major major>
TK_DEVICE u64 descriptor(const Tile& tile, int step) {
  static_assert(Tile::swizzle != 0, "wgmma reads swizzled tiles: give the tile a swizzle of 32, 64 or 128 bytes");
  return tile_descriptor(ptx::shared_address(tile.data), major, Tile::rows, Tile::swizzle, step);
}

// `accumulate` false overwrites D.
template <Major MajorA, Major MajorB, int N, class A, class B>
TK_DEVICE void mma(rt_fl<16, N>& d, const A& a, const B& b, bool accumulate = true) {
  constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
  constexpr int depth = at ? A::rows : A::cols;
  using T = typename A::type;
  static_assert(is_same<T, typename B::type>, "A and B must hold the same type");
  static_assert(is_16bit<T>, "these products take bf16 or fp16 operands");
  static_assert((at ? A::cols : A::rows) == 64, "A must have 64 rows (columns when it is stored transposed)");
  static_assert((bt ? B::cols : B::rows) == N, "the accumulator must be as wide as B");
  static_assert((bt ? B::rows : B::cols) == depth, "A and B must have the same inner dimension");
  static_assert(depth % 16 == 0, "the inner dimension must be a multiple of 16");
#pragma unroll
  for (int step = 0; step < depth / 16; ++step)
    ptx::wgmma<T, N, at, bt>::run(d.x[0], descriptor<A, MajorA>(a, step), descriptor<B, MajorB>(b, step),
                                  step > 0 || accumulate);
}

// A in registers: the warp's 16 rows of it.
template <Major MajorB, int N, class T, int Depth, class B>
TK_DEVICE void mma(rt_fl<16, N>& d, const rt<T, 16, Depth>& a, const B& b, bool accumulate = true) {
  constexpr bool bt = MajorB == Major::mn;
  static_assert(is_same<T, typename B::type>, "A and B must hold the same type");
  static_assert((bt ? B::cols : B::rows) == N, "the accumulator must be as wide as B");
  static_assert((bt ? B::rows : B::cols) == Depth, "A and B must have the same inner dimension");
#pragma unroll
  for (int step = 0; step < Depth / 16; ++step) {
    const u32 fragment[4] = {a.x[0][4 * step], a.x[0][4 * step + 1], a.x[0][4 * step + 2], a.x[0][4 * step + 3]};
    ptx::wgmma<T, N, 0, bt>::run(d.x[0], fragment, descriptor<B, MajorB>(b, step), step > 0 || accumulate);
  }
}

template <int N, class A, class B>
TK_DEVICE void mma_AB(rt_fl<16, N>& d, const A& a, const B& b, bool accumulate = true) {
  mma<Major::k, Major::mn>(d, a, b, accumulate);
}
template <int N, class A, class B>
TK_DEVICE void mma_ABt(rt_fl<16, N>& d, const A& a, const B& b, bool accumulate = true) {
  mma<Major::k, Major::k>(d, a, b, accumulate);
}
template <int N, class A, class B>
TK_DEVICE void mma_AtB(rt_fl<16, N>& d, const A& a, const B& b, bool accumulate = true) {
  mma<Major::mn, Major::mn>(d, a, b, accumulate);
}
template <int N, class A, class B>
TK_DEVICE void mma_AtBt(rt_fl<16, N>& d, const A& a, const B& b, bool accumulate = true) {
  mma<Major::mn, Major::k>(d, a, b, accumulate);
}
template <int N, class T, int Depth, class B>
TK_DEVICE void mma_AB(rt_fl<16, N>& d, const rt<T, 16, Depth>& a, const B& b, bool accumulate = true) {
  mma<Major::mn>(d, a, b, accumulate);
}
template <int N, class T, int Depth, class B>
TK_DEVICE void mma_ABt(rt_fl<16, N>& d, const rt<T, 16, Depth>& a, const B& b, bool accumulate = true) {
  mma<Major::k>(d, a, b, accumulate);
}

}  // namespace tk
