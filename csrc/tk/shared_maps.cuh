// Element by element in shared memory, by all threads of Scope: dst = f(a, b, ..). The functions of maps.cuh (exp2, mul,
// fma ..) take shared memory as they take registers:
//   exp2<warpgroup>(tile, tile)     mul<warpgroup>(tile, other, 0.5f)     map_at<group<8>>(tile, tile, f)     zero(vector)
// The result is an st, an st_part or an sv; an operand may be
//   a tile of the result's shape, a vector of its length (type and swizzle may differ: values convert), also the result
//   a number
// Arithmetic is fp32 (int32 for integers); results are rounded once, into the result's type. Of tiles of one shape, type
// and swizzle a thread takes the same places in every call of one Scope, so a chain of maps of them needs no barrier;
// who reads other places next meets at one first. TMA and wgmma read what was published: publish_tile(), then a barrier.
// Cost: 16 bytes a lane and operand; free of bank conflicts where operands have the type and swizzle of the result.
#pragma once

#include "global_memory.cuh"

namespace tk {

template <class A>
constexpr bool is_sv = false;
template <class T, int N>
constexpr bool is_sv<sv<T, N>> = true;
template <class A>
concept shared_values = shared_tile<plain_tile<A>> || is_sv<plain_tile<A>>;

namespace detail {

template <class Dst, class X>
TK_DEVICE void check_shared_operand() {
  static_assert(!is_rt<X> && !is_rv<X>, "registers cannot be an operand of shared memory: store them first");
  if constexpr (shared_tile<Dst>) {
    static_assert(!is_sv<X>, "a shared vector cannot be an operand of a shared tile: which of its edges? use map_at");
    if constexpr (shared_tile<X>)
      static_assert(Dst::rows == X::rows && Dst::cols == X::cols, "an operand must have the shape of the result");
  } else {
    static_assert(!shared_tile<X>, "a tile cannot be an operand of a vector: reduce it first");
    if constexpr (is_sv<X>) static_assert(Dst::length == X::length, "an operand must have the length of the result");
  }
}

// What operand x contributes to the 16 bytes of the result from (row, col) on.
template <class Dst, class X>
struct shared_operand {
  using To = typename element<typename Dst::type>::compute;
  static constexpr int width = 16 / static_cast<int>(sizeof(typename Dst::type));
  To values[width];

  TK_DEVICE shared_operand(const X& x, int row, int col) {
    if constexpr (!shared_tile<X>) {
      for (To& value : values) value = value_as<To>(x);
    } else {
      using From = typename X::type;
      constexpr int step = 16 / static_cast<int>(sizeof(From));
      if constexpr (step <= width) {  // whole chunks of the operand
#pragma unroll
        for (int first = 0; first < width; first += step) {
          chunk<From> held;
          held.whole = ptx::ld_shared_v4(x.address(row, col + first));
#pragma unroll
          for (int i = 0; i < step; ++i) values[first + i] = value_as<To>(read(&held.part[i]));
        }
      } else {  // narrower elements than the result's: part of a chunk
#pragma unroll
        for (int i = 0; i < width; ++i) values[i] = value_as<To>(read(&x.at(row, col + i)));
      }
    }
  }
};

// The 16 bytes of the result from (row, col) on; f also gets how far along in them an element is.
template <class Dst, class F, class... X>
TK_DEVICE void map_chunk(const Dst& dst, int row, int col, F f, const shared_operand<Dst, X>&... x) {
  using T = typename Dst::type;
  chunk<T> made;
#pragma unroll
  for (int i = 0; i < shared_operand<Dst, int>::width; ++i) write(&made.part[i], f(i, x.values[i]...));
  ptx::st_shared_v4(dst.address(row, col), made.whole);
}

template <class T, class X>
TK_DEVICE typename element<T>::compute element_operand(const X& x, int i) {
  if constexpr (is_sv<X>)
    return value_as<typename element<T>::compute>(read(x.data + i));
  else
    return value_as<typename element<T>::compute>(x);
}

template <class Scope, class Dst, class F, class... X>
TK_DEVICE void map_shared(Dst& dst, F f, const X&... x) {
  using Plain = plain<Dst>;
  (check_shared_operand<Plain, X>(), ...);
  if constexpr (shared_tile<Plain>) {
    using Chunks = chunks<Plain>;
#pragma unroll 2
    for (int i = Scope::thread(); i < Chunks::total; i += Scope::threads) {
      const int row = Chunks::row(i), col = Chunks::col(i);
      map_chunk<Plain>(dst, row, col, [&](int, auto... values) { return f(values...); },
                       shared_operand<Plain, X>(x, row, col)...);
    }
  } else {
    using T = typename Plain::type;
    for (int i = Scope::thread(); i < Plain::length; i += Scope::threads)
      write(dst.data + i, f(element_operand<T>(x, i)...));
  }
}

}  // namespace detail

// dst = f(a), f(a, b), f(a, b, c) for any f of values.
template <class Scope = warp, shared_values Dst, class A, class F>
TK_DEVICE void map(Dst&& dst, const A& a, F f) {
  detail::map_shared<Scope>(dst, f, a);
}
template <class Scope = warp, shared_values Dst, class A, class B, class F>
TK_DEVICE void map(Dst&& dst, const A& a, const B& b, F f) {
  detail::map_shared<Scope>(dst, f, a, b);
}
template <class Scope = warp, shared_values Dst, class A, class B, class C, class F>
TK_DEVICE void map(Dst&& dst, const A& a, const B& b, const C& c, F f) {
  detail::map_shared<Scope>(dst, f, a, b, c);
}
// dst = f(row, col, src), the place counted from the corner of the tile: bias, positions, masks.
template <class Scope = warp, class Dst, shared_tile Src, class F>
  requires shared_tile<plain_tile<Dst>>
TK_DEVICE void map_at(Dst&& dst, const Src& src, F f) {
  using Tile = plain_tile<Dst>;
  using Chunks = detail::chunks<Tile>;
  detail::check_shared_operand<Tile, Src>();
#pragma unroll 2
  for (int k = Scope::thread(); k < Chunks::total; k += Scope::threads) {
    const int row = Chunks::row(k), col = Chunks::col(k);
    detail::map_chunk<Tile>(dst, row, col, [&](int i, auto value) { return f(row, col + i, value); },
                            detail::shared_operand<Tile, Src>(src, row, col));
  }
}

// dst = value everywhere.
template <class Scope = warp, shared_values Dst, class V>
TK_DEVICE void fill(Dst&& dst, V value) {
  detail::map_shared<Scope>(dst, [](auto x) { return x; }, value);
}
template <class Scope = warp, shared_values Dst>
TK_DEVICE void zero(Dst&& dst) {
  fill<Scope>(dst, 0);
}
template <class Scope = warp, shared_values Dst>
TK_DEVICE void one(Dst&& dst) {
  fill<Scope>(dst, 1);
}
// dst = src, in dst's type, shape kept: another swizzle, another type.
template <class Scope = warp, shared_values Dst, shared_values Src>
TK_DEVICE void copy(Dst&& dst, const Src& src) {
  detail::map_shared<Scope>(dst, [](auto x) { return x; }, src);
}

}  // namespace tk
