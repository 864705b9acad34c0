// copy: the same tile in another type. Types of one run length convert in place; 8-bit and tf32 tiles are laid out
// differently (runs of 4 and of 1) and exchange elements within the four lanes of a row.
#pragma once

#include "tiles.cuh"

namespace tk {

namespace detail {

// ---- Exchanges within a quad: lane t of four ---------------------------------------------------------------------
// 16 columns of a row of 8-bit elements. As a run of 4: bytes are columns 4 t ... As pairs: bytes are columns 2 t,
// 2 t + 1, 8 + 2 t, 8 + 2 t + 1.
TK_DEVICE u32 run4_to_pairs(u32 run) {
  const int t = lane_index() % 4;
  const u32 a = __shfl_sync(0xffffffffu, run, t / 2, 4), b = __shfl_sync(0xffffffffu, run, 2 + t / 2, 4);
  return __byte_perm(a, b, t % 2 ? 0x7632 : 0x5410);
}
TK_DEVICE u32 pairs_to_run4(u32 pairs) {
  const int t = lane_index() % 4;
  const u32 a = __shfl_sync(0xffffffffu, pairs, 2 * t % 4, 4), b = __shfl_sync(0xffffffffu, pairs, (2 * t + 1) % 4, 4);
  return __byte_perm(a, b, t < 2 ? 0x5410 : 0x7632);
}
// 8 columns of a row of 32-bit elements. As runs of 1: columns t and 4 + t. As a pair: columns 2 t, 2 t + 1.
TK_DEVICE float2 run1_to_pair(float first, float second) {
  const int t = lane_index() % 4, even = 2 * t % 4, odd = (2 * t + 1) % 4;
  const float a = __shfl_sync(0xffffffffu, first, even, 4), b = __shfl_sync(0xffffffffu, second, even, 4);
  const float c = __shfl_sync(0xffffffffu, first, odd, 4), d = __shfl_sync(0xffffffffu, second, odd, 4);
  return t < 2 ? make_float2(a, c) : make_float2(b, d);
}
TK_DEVICE float2 pair_to_run1(float first, float second) {
  const int t = lane_index() % 4, near = t / 2, far = 2 + t / 2;
  const float a = __shfl_sync(0xffffffffu, first, near, 4), b = __shfl_sync(0xffffffffu, second, near, 4);
  const float c = __shfl_sync(0xffffffffu, first, far, 4), d = __shfl_sync(0xffffffffu, second, far, 4);
  return t % 2 ? make_float2(b, d) : make_float2(a, c);
}

// ---- Pairs of a tile with runs of 2: pair p of a block is its elements 2 p, 2 p + 1 ------------------------------
template <class Tile>
TK_DEVICE void set_pair(Tile& tile, int b, int p, typename Tile::compute low, typename Tile::compute high) {
  static_assert(Tile::run == 2, "pairs belong to tiles of 16- and 32-bit types");
  if constexpr (Tile::per_word == 2) {
    tile.x[b][p] = packed<typename Tile::type>::make({low, high});
  } else {
    tile.x[b][2 * p] = low;
    tile.x[b][2 * p + 1] = high;
  }
}

template <class A, class B>
TK_DEVICE void copy_same_run(A& dst, const B& src) {
  using To = typename A::compute;
#pragma unroll
  for (int b = 0; b < A::blocks; ++b)
#pragma unroll
    for (int w = 0; w < A::words; ++w) {
      To v[A::per_word];
#pragma unroll
      for (int i = 0; i < A::per_word; ++i) v[i] = value_as<To>(src.get(b, w * A::per_word + i));
      dst.x[b][w] = packed<typename A::type>::make(v);
    }
}

// 8 bits -> runs of 2.
template <class A, class B>
TK_DEVICE void copy_narrow_out(A& dst, const B& src) {
  using To = typename A::compute;
  using P = packed<typename B::type>;
#pragma unroll
  for (int b = 0; b < B::blocks; ++b)
#pragma unroll
    for (int w = 0; w < B::words; ++w) {  // w = 2 (group of 16 columns) + half
      const u32 pairs = run4_to_pairs(src.x[b][w]);
      const int p = 4 * (w / 2) + w % 2;
      set_pair(dst, b, p, value_as<To>(P::get(pairs, 0)), value_as<To>(P::get(pairs, 1)));
      set_pair(dst, b, p + 2, value_as<To>(P::get(pairs, 2)), value_as<To>(P::get(pairs, 3)));
    }
}
// Runs of 2 -> 8 bits.
template <class A, class B>
TK_DEVICE void copy_narrow_in(A& dst, const B& src) {
  using To = typename A::compute;
#pragma unroll
  for (int b = 0; b < A::blocks; ++b)
#pragma unroll
    for (int w = 0; w < A::words; ++w) {
      const int e = 2 * (4 * (w / 2) + w % 2);
      const auto at = [&](int i) { return value_as<To>(src.get(b, i)); };
      dst.x[b][w] = pairs_to_run4(packed<typename A::type>::make({at(e), at(e + 1), at(e + 4), at(e + 5)}));
    }
}
// tf32 -> runs of 2, and back.
template <class A, class B>
TK_DEVICE void copy_tf32_out(A& dst, const B& src) {
  using To = typename A::compute;
#pragma unroll
  for (int b = 0; b < B::blocks; ++b)
#pragma unroll
    for (int p = 0; p < A::elements / 2; ++p) {  // p = 2 (group of 8 columns) + half
      const int e = 4 * (p / 2) + p % 2;
      const float2 pair = run1_to_pair(src.x[b][e], src.x[b][e + 2]);
      set_pair(dst, b, p, value_as<To>(pair.x), value_as<To>(pair.y));
    }
}
template <class A, class B>
TK_DEVICE void copy_tf32_in(A& dst, const B& src) {
#pragma unroll
  for (int b = 0; b < A::blocks; ++b)
#pragma unroll
    for (int p = 0; p < A::elements / 2; ++p) {
      const int e = 4 * (p / 2) + p % 2;
      const auto at = [&](int i) { return ptx::to_tf32(value_as<float>(src.get(b, i))); };
      const float2 runs = pair_to_run1(at(2 * p), at(2 * p + 1));
      dst.x[b][e] = runs.x;
      dst.x[b][e + 2] = runs.y;
    }
}

}  // namespace detail

// dst = src, in dst's type: rounded to nearest even (tf32: ties away), 8-bit types saturated to their largest value.
template <class A, class B, int Rows, int Cols, Layout L>
TK_DEVICE void copy(rt<A, Rows, Cols, L>& dst, const rt<B, Rows, Cols, L>& src) {
  using To = rt<A, Rows, Cols, L>;
  using From = rt<B, Rows, Cols, L>;
  if constexpr (is_same<A, B>) {
    dst = src;
  } else if constexpr (To::run == From::run) {
    detail::copy_same_run(dst, src);
  } else if constexpr (To::run == 2 && From::run == 4) {
    detail::copy_narrow_out(dst, src);
  } else if constexpr (To::run == 4 && From::run == 2) {
    detail::copy_narrow_in(dst, src);
  } else if constexpr (To::run == 2 && From::run == 1) {
    detail::copy_tf32_out(dst, src);
  } else if constexpr (To::run == 1 && From::run == 2) {
    detail::copy_tf32_in(dst, src);
  } else {  // 8 bits <-> tf32
    rt<float, Rows, Cols, L> middle;
    copy(middle, src);
    copy(dst, middle);
  }
}
template <class To, class From>
  requires(is_rt<To> && is_rt<From>)
TK_DEVICE void copy(To&, const From&) {
  static_assert(To::rows == From::rows && To::cols == From::cols, "copy needs tiles of one shape");
  static_assert(To::layout == From::layout, "copy keeps the layout: swap_layout or transpose change it");
}

namespace detail {

// The lane and slot that hold index n of a vector.
template <class V>
TK_HD constexpr int holder_lane(int n) {
  return V::spread == Spread::across  ? 4 * (n % 8)
         : V::spread == Spread::along ? n % (4 * V::run) / V::run
                                      : n % 32;
}
template <class V>
TK_HD constexpr int holder_slot(int n) {
  return V::spread == Spread::across  ? n / 8
         : V::spread == Spread::along ? n / (4 * V::run) * V::run + n % V::run
                                      : n / 32;
}
// Does some lane take slot `to` of A from slot `from` of B?
template <class A, class B>
TK_HD constexpr bool meets(int to, int from) {
  for (int lane = 0; lane < 32; ++lane) {
    const int n = vector_index(A::spread, lane, to, A::run);
    if (n < A::length && holder_slot<B>(n) == from) return true;
  }
  return false;
}

template <class A, class B, int To, int From>
TK_DEVICE void copy_slot(A& dst, const B& src) {
  if constexpr (From < B::slots) {
    if constexpr (meets<A, B>(To, From)) {
      const int n = ::min(vector_index(A::spread, lane_index(), To, A::run), A::length - 1);
      const auto value = __shfl_sync(0xffffffffu, src.x[From], holder_lane<B>(n));
      if (holder_slot<B>(n) == From) dst.x[To] = value_as<typename A::type>(value);
    }
    copy_slot<A, B, To, From + 1>(dst, src);
  }
}
template <class A, class B, int To = 0>
TK_DEVICE void copy_slots(A& dst, const B& src) {
  if constexpr (To < A::slots) {
    copy_slot<A, B, To, 0>(dst, src);
    copy_slots<A, B, To + 1>(dst, src);
  }
}

}  // namespace detail

// The same vector spread otherwise, or of the other type: one value per row becomes one per column, by shuffles.
template <class A, class B>
  requires(is_rv<A> && is_rv<B>)
TK_DEVICE void copy(A& dst, const B& src) {
  static_assert(A::length == B::length, "copy needs vectors of one length");
  if constexpr (A::spread == B::spread && A::run == B::run) {
#pragma unroll
    for (int k = 0; k < A::slots; ++k) dst.x[k] = value_as<typename A::type>(src.x[k]);
  } else {
    detail::copy_slots(dst, src);
  }
}

}  // namespace tk
