// Complex tiles and vectors: a pair of any of them, real and imaginary part. Products take four real ones:
//   mma_AB(d, a, b)             of a warp, all in registers
//   mma_AB(d, a, minus_im, b)   of a warpgroup; minus_im, which the kernel keeps until mma_wait, is -a.im
#pragma once

#include "maps.cuh"
#include "mma.cuh"
#include "shape.cuh"

namespace tk {

// complex<rt_fl<16, 64>> x; x.re and x.im are tiles.
template <class Part>
struct complex {
  Part re, im;
};

// Part by part.
template <class P>
TK_DEVICE void zero(complex<P>& dst) {
  zero(dst.re);
  zero(dst.im);
}
template <class A, class B>
TK_DEVICE void copy(complex<A>& dst, const complex<B>& src) {
  copy(dst.re, src.re);
  copy(dst.im, src.im);
}
template <class P, class A, class B>
TK_DEVICE void add(complex<P>& dst, const complex<A>& a, const complex<B>& b) {
  add(dst.re, a.re, b.re);
  add(dst.im, a.im, b.im);
}
template <class P, class A, class B>
TK_DEVICE void sub(complex<P>& dst, const complex<A>& a, const complex<B>& b) {
  sub(dst.re, a.re, b.re);
  sub(dst.im, a.im, b.im);
}
// dst = a b, b a tile, a vector broadcast along rows or columns; dst may be a or b.
template <class P, class A, class B>
TK_DEVICE void mul(complex<P>& dst, const complex<A>& a, const complex<B>& b) {
  P re;
  map(re, a.im, b.im, [](float x, float y) { return x * y; });
  detail::map_all(re, [](float x, float y, float z) { return fmaf(x, y, -z); }, a.re, b.re, re);
  P im;
  map(im, a.im, b.re, [](float x, float y) { return x * y; });
  fma(dst.im, a.re, b.im, im);
  dst.re = re;
}
// dst = the conjugate of a
template <class P>
TK_DEVICE void conj(complex<P>& dst, const complex<P>& a) {
  dst.re = a.re;
  neg(dst.im, a.im);
}
// dst = |a|^2
template <class P>
TK_DEVICE void norm(P& dst, const complex<P>& a) {
  mul(dst, a.re, a.re);
  fma(dst, a.im, a.im, dst);
}
// dst = e^a
template <class P>
TK_DEVICE void exp(complex<P>& dst, const complex<P>& a) {
  P size, angle = a.im;
  exp(size, a.re);
  cos(dst.re, angle);
  sin(dst.im, angle);
  mul(dst.re, dst.re, size);
  mul(dst.im, dst.im, size);
}
// Part by part; the transpose is not conjugated.
template <class A, class B>
TK_DEVICE void transpose(complex<A>& dst, const complex<B>& src) {
  transpose(dst.re, src.re);
  transpose(dst.im, src.im);
}
template <class A, class B>
TK_DEVICE void swap_layout(complex<A>& dst, const complex<B>& src) {
  swap_layout(dst.re, src.re);
  swap_layout(dst.im, src.im);
}

namespace detail {

// -x by its sign bits.
template <class Tile>
TK_DEVICE void flip_signs(Tile& x) {
  static_assert(!is_same<typename Tile::compute, int>, "complex products are of floating-point tiles");
  constexpr u32 signs = is_16bit<typename Tile::type> ? 0x80008000u : 0x80808080u;
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int w = 0; w < Tile::words; ++w) {
      if constexpr (is_same<typename Tile::word, float>)
        x.x[b][w] = -x.x[b][w];
      else
        x.x[b][w] ^= signs;
    }
}

}  // namespace detail

#define TK_COMPLEX_MMA(NAME)                                                                                 \
  template <class D, class A, class MinusIm, class B>                                                        \
  TK_DEVICE void NAME(complex<D>& d, const complex<A>& a, const MinusIm& minus_im, const complex<B>& b,      \
                      bool accumulate = true) {                                                              \
    NAME(d.re, a.re, b.re, accumulate);                                                                      \
    NAME(d.re, minus_im, b.im);                                                                              \
    NAME(d.im, a.re, b.im, accumulate);                                                                      \
    NAME(d.im, a.im, b.re);                                                                                  \
  }                                                                                                          \
  template <class D, class A, class B>                                                                       \
  TK_DEVICE void NAME(complex<D>& d, const complex<A>& a, const complex<B>& b, bool accumulate = true) {     \
    static_assert(is_rt<A> && is_rt<B>,                                                                      \
                  "a complex product of a warpgroup needs -a.im too: " #NAME "(d, a, minus_im, b)");         \
    A minus_im = a.im;                                                                                       \
    detail::flip_signs(minus_im);                                                                            \
    NAME(d, a, minus_im, b, accumulate);                                                                     \
  }
// d += a b of complex tiles.
TK_COMPLEX_MMA(mma_AB)
TK_COMPLEX_MMA(mma_ABt)
TK_COMPLEX_MMA(mma_AtB)
TK_COMPLEX_MMA(mma_AtBt)
#undef TK_COMPLEX_MMA

}  // namespace tk
