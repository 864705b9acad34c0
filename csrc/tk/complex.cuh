// Complex tiles and vectors: a pair of any of them, real and imaginary part.
#pragma once

#include "maps.cuh"
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

}  // namespace tk
