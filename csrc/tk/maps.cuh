// Element by element: dst = f(a, b, ..). In shared memory: shared_maps.cuh. In registers the result is a register tile or vector; an operand may be
//   a tile of the result's shape and layout (its type may differ: values convert), also the result itself
//   a vector, Tile::per_row or Tile::per_col of the result, broadcast along its rows or columns
//   a number
// Arithmetic is fp32 (int32 for integer tiles); results are rounded once, into the result's type.
#pragma once

#include "functions.cuh"
#include "shared_maps.cuh"

namespace tk {

namespace detail {

template <class Dst, class X>
TK_DEVICE void check_operand() {
  if constexpr (is_rt<Dst> && is_rt<X>) {
    static_assert(Dst::rows == X::rows && Dst::cols == X::cols, "an operand must have the shape of the result");
    static_assert(Dst::layout == X::layout, "an operand must have the layout of the result: use swap_layout");
    static_assert(Dst::run == X::run, "8-bit and tf32 tiles are laid out differently: convert with copy first");
  } else if constexpr (is_rt<Dst> && is_rv<X>) {
    static_assert(X::spread == Spread::across || X::spread == Spread::along,
                  "a vector operand must be Tile::per_row or Tile::per_col: copy it into one");
    static_assert(X::length == (X::spread == Spread::across ? Dst::across : Dst::along) &&
                      (X::spread == Spread::across || X::run == Dst::run),
                  "a vector operand must be per_row or per_col of the result's own tile type");
  } else if constexpr (is_rv<Dst> && is_rv<X>) {
    static_assert(Dst::length == X::length && Dst::spread == X::spread && Dst::run == X::run,
                  "an operand must have the length and spread of the result: copy it into such a vector");
  } else {
    static_assert(!is_rt<X>, "a tile cannot be an operand of a vector: reduce it first");
  }
}

// What operand x contributes to element e of block b of a tile, to slot k of a vector.
template <class Dst, class X>
TK_DEVICE typename Dst::compute operand(const X& x, int b, int e) {
  using To = typename Dst::compute;
  if constexpr (is_rt<X>)
    return value_as<To>(x.get(b, e));
  else if constexpr (!is_rv<X>)
    return value_as<To>(x);
  else if constexpr (X::spread == Spread::across)
    return value_as<To>(x.x[across_slot(b, e, Dst::run)]);
  else
    return value_as<To>(x.x[along_slot(e, Dst::run)]);
}
template <class Dst, class X>
TK_DEVICE typename Dst::type operand(const X& x, int k) {
  if constexpr (is_rv<X>)
    return value_as<typename Dst::type>(x.x[k]);
  else
    return value_as<typename Dst::type>(x);
}

template <class Dst, class F, class... X>
TK_DEVICE void map_all(Dst& dst, F f, const X&... x) {
  (check_operand<Dst, X>(), ...);
  if constexpr (is_rt<Dst>) {
#pragma unroll
    for (int b = 0; b < Dst::blocks; ++b)
#pragma unroll
      for (int w = 0; w < Dst::words; ++w) {
        typename Dst::compute v[Dst::per_word];
#pragma unroll
        for (int i = 0; i < Dst::per_word; ++i) v[i] = f(operand<Dst>(x, b, w * Dst::per_word + i)...);
        dst.x[b][w] = packed<typename Dst::type>::make(v);
      }
  } else {
#pragma unroll
    for (int k = 0; k < Dst::slots; ++k) dst.x[k] = f(operand<Dst>(x, k)...);
  }
}

}  // namespace detail

template <class A>
concept register_values = is_rt<A> || is_rv<A>;

// dst = f(a), f(a, b), f(a, b, c) for any f of values.
template <register_values Dst, class A, class F>
TK_DEVICE void map(Dst& dst, const A& a, F f) {
  detail::map_all(dst, f, a);
}
template <register_values Dst, class A, class B, class F>
TK_DEVICE void map(Dst& dst, const A& a, const B& b, F f) {
  detail::map_all(dst, f, a, b);
}
template <register_values Dst, class A, class B, class C, class F>
TK_DEVICE void map(Dst& dst, const A& a, const B& b, const C& c, F f) {
  detail::map_all(dst, f, a, b, c);
}
// dst = f(row, col, src), the place counted from the corner of Scope's tile: bias, positions.
template <class Scope = warp, class Dst, class F>
  requires is_rt<Dst>
TK_DEVICE void map_at(Dst& dst, const Dst& src, F f) {
#pragma unroll
  for (int b = 0; b < Dst::blocks; ++b)
#pragma unroll
    for (int w = 0; w < Dst::words; ++w) {
      typename Dst::compute v[Dst::per_word];
#pragma unroll
      for (int i = 0; i < Dst::per_word; ++i) {
        const int e = w * Dst::per_word + i;
        v[i] = f(group_row<Scope, Dst>(b, e), Dst::col(b, e), src.get(b, e));
      }
      dst.x[b][w] = packed<typename Dst::type>::make(v);
    }
}

// dst = value everywhere.
template <register_values Dst, class V>
TK_DEVICE void fill(Dst& dst, V value) {
  detail::map_all(dst, [](auto x) { return x; }, value);
}
template <register_values Dst>
TK_DEVICE void zero(Dst& dst) {
  fill(dst, 0);
}
template <register_values Dst>
TK_DEVICE void one(Dst& dst) {
  fill(dst, 1);
}
// dst = the vector or number x, broadcast.
template <register_values Dst, class X>
TK_DEVICE void broadcast(Dst& dst, const X& x) {
  detail::map_all(dst, [](auto v) { return v; }, x);
}

// Each in registers, and in shared memory by all threads of Scope.
#define TK_MAP1(NAME)                                                      \
  template <register_values Dst, class A>                                  \
  TK_DEVICE void NAME(Dst& dst, const A& a) {                              \
    detail::map_all(dst, [](auto x) { return fn::NAME(x); }, a);           \
  }                                                                        \
  template <class Scope = warp, shared_values Dst, class A>                \
  TK_DEVICE void NAME(Dst&& dst, const A& a) {                             \
    detail::map_shared<Scope>(dst, [](auto x) { return fn::NAME(x); }, a); \
  }
#define TK_MAP2(NAME)                                                                    \
  template <register_values Dst, class A, class B>                                       \
  TK_DEVICE void NAME(Dst& dst, const A& a, const B& b) {                                \
    detail::map_all(dst, [](auto x, auto y) { return fn::NAME(x, y); }, a, b);           \
  }                                                                                      \
  template <class Scope = warp, shared_values Dst, class A, class B>                     \
  TK_DEVICE void NAME(Dst&& dst, const A& a, const B& b) {                               \
    detail::map_shared<Scope>(dst, [](auto x, auto y) { return fn::NAME(x, y); }, a, b); \
  }
TK_MAP1(exp2)          // 2^a
TK_MAP1(exp)           // e^a
TK_MAP1(log2)          // log2 a
TK_MAP1(log)           // ln a
TK_MAP1(rcp)           // 1 / a
TK_MAP1(rsqrt)         // 1 / sqrt a
TK_MAP1(sqrt)          // sqrt a
TK_MAP1(tanh)          // tanh a
TK_MAP1(tanh_fast)     // tanh a in one instruction, to 11 bits
TK_MAP1(sigmoid)       // 1 / (1 + e^-a)
TK_MAP1(sin)           // sin a
TK_MAP1(cos)           // cos a
TK_MAP1(erf)           // erf a
TK_MAP1(square)        // a^2
TK_MAP1(abs)           // |a|
TK_MAP1(neg)           // -a
TK_MAP1(relu)          // max(a, 0)
TK_MAP1(relu_squared)  // max(a, 0)^2
TK_MAP1(silu)          // a / (1 + e^-a)
TK_MAP1(gelu)          // a Phi(a)
TK_MAP1(gelu_tanh)     // the tanh form of gelu
TK_MAP2(add)           // a + b
TK_MAP2(sub)           // a - b
TK_MAP2(mul)           // a b
TK_MAP2(div)           // a / b
TK_MAP2(max)           // the larger of a and b
TK_MAP2(min)           // the smaller of a and b
TK_MAP2(pow)           // a^b for a >= 0
#undef TK_MAP1
#undef TK_MAP2

// dst = a b + c
template <register_values Dst, class A, class B, class C>
TK_DEVICE void fma(Dst& dst, const A& a, const B& b, const C& c) {
  detail::map_all(dst, [](auto x, auto y, auto z) { return fn::fma(x, y, z); }, a, b, c);
}
template <class Scope = warp, shared_values Dst, class A, class B, class C>
TK_DEVICE void fma(Dst&& dst, const A& a, const B& b, const C& c) {
  detail::map_shared<Scope>(dst, [](auto x, auto y, auto z) { return fn::fma(x, y, z); }, a, b, c);
}

}  // namespace tk
