// Maps as kernels, for test_maps.py, which appends the list of them: `op` chooses the function, so that a kernel holds
// all of one kind.
#include "tk/tk.cuh"

using namespace tk;

template <class Tile>
TK_DEVICE view<typename Tile::type> matrix(typename Tile::type* data) {
  return {data, Tile::rows, Tile::cols, Tile::cols};
}
template <class Tile>
TK_DEVICE view<const typename Tile::type> matrix(const typename Tile::type* data) {
  return {data, Tile::rows, Tile::cols, Tile::cols};
}

template <class A, class B>
TK_DEVICE void unary(A& y, const B& x, int op) {
  switch (op) {
#define CASE(N, NAME) \
  case N:             \
    NAME(y, x);       \
    break;
    CASE(0, exp2) CASE(1, exp) CASE(2, log2) CASE(3, log) CASE(4, rcp) CASE(5, rsqrt) CASE(6, sqrt) CASE(7, tanh)
    CASE(8, tanh_fast) CASE(9, sigmoid) CASE(10, sin) CASE(11, cos) CASE(12, erf) CASE(13, silu) CASE(14, gelu)
    CASE(15, gelu_tanh) CASE(16, square) CASE(17, abs) CASE(18, neg) CASE(19, relu) CASE(20, relu_squared)
    CASE(21, copy)
  }
}
template <class A>
TK_DEVICE void plain_unary(A& y, const A& x, int op) {  // those that integers have too
  switch (op) {
    CASE(16, square) CASE(17, abs) CASE(18, neg) CASE(19, relu) CASE(20, relu_squared) CASE(21, copy)
  }
}
#define UNARY(NAME, T, ROWS, COLS, L)                                                                   \
  extern "C" __global__ void __launch_bounds__(32) NAME(const T* x, T* y, int op) {                     \
    rt<T, ROWS, COLS, Layout::L> in, out;                                                               \
    load(in, matrix<decltype(in)>(x), 0, 0);                                                            \
    if constexpr (is_same<T, int>)                                                                      \
      plain_unary(out, in, op);                                                                         \
    else                                                                                                \
      unary(out, in, op);                                                                               \
    store(matrix<decltype(out)>(y), out, 0, 0);                                                         \
  }

template <class Y, class A, class B>
TK_DEVICE void binary(Y& y, const A& a, const B& b, int op) {
  switch (op) {
#define CASE2(N, NAME) \
  case N:              \
    NAME(y, a, b);     \
    break;
    CASE2(0, add) CASE2(1, sub) CASE2(2, mul) CASE2(3, max) CASE2(4, min)
  }
  if constexpr (is_same<typename Y::compute, float>) {
    switch (op) { CASE2(5, div) CASE2(6, pow) }
  }
}
// Operands by `mode`: tile tile, tile per_row, tile per_col, tile number, number tile, in place.
template <class T, int Rows, int Cols, Layout L>
TK_DEVICE void binaries(const T* x, const T* z, T* y, int op, int mode) {
  using Tile = rt<T, Rows, Cols, L>;
  Tile a, b, out;
  typename Tile::per_row rows;
  typename Tile::per_col cols;
  load(a, matrix<Tile>(x), 0, 0);
  load(b, matrix<Tile>(z), 0, 0);
  load(rows, vec_view<const T>{z, Rows, Cols});  // the first column of z
  load(cols, vec_view<const T>{z, Cols});        // its first row
  const auto number = read(z);
  if (mode == 0) binary(out, a, b, op);
  if (mode == 1) binary(out, a, rows, op);
  if (mode == 2) binary(out, a, cols, op);
  if (mode == 3) binary(out, a, number, op);
  if (mode == 4) binary(out, number, a, op);
  if (mode == 5) {
    binary(a, a, b, op);
    out = a;
  }
  store(matrix<Tile>(y), out, 0, 0);
}
#define BINARY(NAME, T, ROWS, COLS, L)                                                                   \
  extern "C" __global__ void __launch_bounds__(32) NAME(const T* x, const T* z, T* y, int op, int mode) { \
    binaries<T, ROWS, COLS, Layout::L>(x, z, y, op, mode);                                               \
  }

// What is left: fills, broadcasts, fma, places, results of another type, maps of vectors.
extern "C" __global__ void __launch_bounds__(128) others(const float* x, const float* v, float* y, bf16* z, int op) {
  using Tile = rt_fl<16, 24>;
  Tile a, out;
  Tile::per_row rows;
  Tile::per_col cols;
  const int row = 16 * warp_index();
  load<warpgroup>(a, view<const float>{x, 64, 24, 24}, 0, 0);
  load(rows, vec_view<const float>{v, 64}, row);
  load(cols, vec_view<const float>{v, 24});
  if (op == 0) zero(out);
  if (op == 1) one(out);
  if (op == 2) fill(out, 2.5f);
  if (op == 3) broadcast(out, rows);
  if (op == 4) broadcast(out, cols);
  if (op == 5) fma(out, a, rows, cols);
  if (op == 6) fma(out, 2.0f, a, a);
  if (op == 7) map_at<warpgroup>(out, a, [](int r, int c, float value) { return 100.0f * r + c + value; });
  if (op == 8) {
    rt_bf<16, 16> narrow;
    rt_fl<16, 16> part;
    columns(part, a, 8);
    exp2(narrow, part);  // rounded once, into the result's type
    store<warpgroup>(view<bf16>{z, 64, 16, 16}, narrow, 0, 0);
    zero(out);
  }
  if (op == 9) {
    Tile::per_row twice;
    add(twice, rows, rows);
    exp2(twice, twice);
    mul(twice, twice, 3.0f);
    broadcast(out, twice);
  }
  if (op == 10) map(out, a, rows, [](float p, float q) { return p > q ? p : -q; });
  store<warpgroup>(view<float>{y, 64, 24, 24}, out, 0, 0);
}

// In shared memory, by a block of three warps; Z and SWIZZLE: the second operand's type and its swizzle.
template <class T, class Z, int Rows, int Cols, int Swizzle>
TK_DEVICE void shared(const T* x, const Z* z, T* y, int op) {
  using Block = group<3>;
  __shared__ st<T, Rows, Cols> a, out;
  __shared__ st<Z, Rows, Cols, Swizzle> b;
  __shared__ sv<T, Cols> v;
  __shared__ sv<Z, Cols> w;
  load<Block>(a, matrix<decltype(a)>(x), 0, 0);
  load<Block>(b, matrix<decltype(b)>(z), 0, 0);
  load<Block>(v, vec_view<const T>{x, Cols});
  load<Block>(w, vec_view<const Z>{z, Cols});
  one<Block>(out);
  __syncthreads();
  if (op == 0) zero<Block>(out);
  if (op == 1) fill<Block>(out, 2.5f);
  if (op == 2) copy<Block>(out, b);
  if (op == 3) sigmoid<Block>(out, a);
  if (op == 4) mul<Block>(out, a, b);
  if (op == 5) sub<Block>(out, 3, a);
  if (op == 6) fma<Block>(out, a, 0.5f, b);
  if (op == 7) {  // in place, then on: no barrier between maps of one scope
    abs<Block>(a, a);
    add<Block>(out, a, 1.0f);
    sqrt<Block>(out, out);
  }
  if (op == 8) map_at<Block>(out, b, [](int r, int c, float value) { return c <= r ? value : -1.0f; });
  if (op == 9) map<Block>(out, a, b, [](float p, float q) { return p > q ? p : -q; });
  if (op == 10) map<Block>(out, a, b, 2, [](float p, float q, float r) { return p * r - q; });
  if (op == 11) neg<Block>(subtile<8, 16>(out, Rows - 8, Cols - 16), subtile<8, 16>(a, 0, 0));
  if (op == 12 && warp_index() == 1) exp2(out, b);  // by one warp
  if (op == 13) {
    max<Block>(v, v, w);
    mul<Block>(v, v, 2.0f);
    __syncthreads();
    map_at<Block>(out, a, [](int, int c, float) { return read(v.data + c); });
  }
  __syncthreads();
  store<Block>(matrix<decltype(out)>(y), out, 0, 0);
}
#define SHARED(NAME, T, Z, ROWS, COLS, SWIZZLE)                                                       \
  extern "C" __global__ void __launch_bounds__(96) NAME(const T* x, const Z* z, T* y, int op) {       \
    shared<T, Z, ROWS, COLS, SWIZZLE>(x, z, y, op);                                                   \
  }

// Complex tiles; b is a tile or one number per column.
extern "C" __global__ void __launch_bounds__(32)
    complexes(const float* a_re, const float* a_im, const float* b_re, const float* b_im, float* re, float* im, int op) {
  using Tile = rt_fl<16, 16>;
  complex<Tile> a, b, out;
  complex<Tile::per_col> v;
  load(a.re, matrix<Tile>(a_re), 0, 0);
  load(a.im, matrix<Tile>(a_im), 0, 0);
  load(b.re, matrix<Tile>(b_re), 0, 0);
  load(b.im, matrix<Tile>(b_im), 0, 0);
  load(v.re, vec_view<const float>{b_re, 16});
  load(v.im, vec_view<const float>{b_im, 16});
  zero(out);
  if (op == 0) add(out, a, b);
  if (op == 1) sub(out, a, b);
  if (op == 2) mul(out, a, b);
  if (op == 3) mul(out, a, v);
  if (op == 4) {
    mul(a, a, b);  // in place
    copy(out, a);
  }
  if (op == 5) conj(out, a);
  if (op == 6) norm(out.re, a);
  if (op == 7) exp(out, a);
  if (op == 8) transpose(out, a);
  if (op == 9) {
    complex<rt_fl<16, 16, Layout::col>> turned;
    swap_layout(turned, a);
    transpose(out, turned);
  }
  if (op == 10) {  // out = a b + a b, all in registers
    complex<rt_bf<16, 16>> left;
    complex<rt_bf<16, 16, Layout::col>> right;
    complex<rt_bf<16, 16>> rows;
    copy(left, a);
    copy(rows, b);
    swap_layout(right, rows);
    mma_AB(out, left, right, false);
    mma_AB(out, left, right);
  }
  store(matrix<Tile>(re), out.re, 0, 0);
  store(matrix<Tile>(im), out.im, 0, 0);
}

// D = A B^t of a warpgroup, complex: A [64, 32] in registers, B [32, 32] shared.
extern "C" __global__ void __launch_bounds__(128) complex_product(const bf16* a_re, const bf16* a_im, const bf16* b_re,
                                                                  const bf16* b_im, float* re, float* im) {
  __shared__ complex<st<bf16, 32, 32>> b;
  complex<rt_bf<16, 32>> a;
  rt_bf<16, 32> minus_im;
  load<warpgroup>(b.re, view<const bf16>{b_re, 32, 32, 32}, 0, 0);
  load<warpgroup>(b.im, view<const bf16>{b_im, 32, 32, 32}, 0, 0);
  load<warpgroup>(a.re, view<const bf16>{a_re, 64, 32, 32}, 0, 0);
  load<warpgroup>(a.im, view<const bf16>{a_im, 64, 32, 32}, 0, 0);
  neg(minus_im, a.im);
  publish_tile();
  __syncthreads();
  complex<rt_fl<16, 32>> d;
  mma_fence();
  mma_ABt(d, a, minus_im, b, false);
  mma_commit();
  mma_wait();
  store<warpgroup>(view<float>{re, 64, 32, 32}, d.re, 0, 0);
  store<warpgroup>(view<float>{im, 64, 32, 32}, d.im, 0, 0);
}
