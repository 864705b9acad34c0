// Transforms of fft_conv: the DFT of z at the frequencies j + 1/4 by small DFT matrices on tensor cores, and back.
//
//   Z_j = sum_n z_n w^(n (j + 1/4)), w = exp(-2 pi i / M), j < M    z_n = x_n - i x_(n+M) of a real x of 2M samples
// These are the values of the polynomial x at half of the 2M-th roots of -1, one of each conjugate pair: products of
// them are products of real polynomials mod t^2M + 1, convolutions that wrap with a minus sign. Every output that
// wrapped lies outside what the callers read. So one complex transform of M serves 2M real samples, with no pairing of
// frequencies afterwards and nothing shared between rows; of a row of at most M samples z is real, and of the
// result only the real part is read: the first and the last matrix have half the size.
//
// n = (n1 N2 + n2) N3 + n3,  j = j1 + N1 (j2 + N2 j3):
//   first   over n1: F1[j1, n1] = w1^(n1 (j1 + 1/4))   times w^((n2 N3 + n3) (j1 + 1/4)) = coarse[j1, n2] fine[j1, n3]
//   second  over n2: F2[j2, n2] = w2^(n2 j2)           times inner[j2, n3]
//   third   over n3: F3[j3, n3] = w3^(n3 j3)           values Z at [j1][j2][j3]: never put in order
// and back with conjugate transposes. A complex matrix of n is a real one of 2n, [re -im; im re], rows and columns in
// the order of eights: 8 real parts, 8 imaginary parts, the next 8 ..: one lane has both parts of an element in every
// accumulator, and back is the transpose. Factors of 8, 16 and 32 fill tiles of 16 x 16 without waste.
//
// shared memory  data[4][M] bf16, planes re and im of the upper terms, then of the lower: chunks of 8 samples,
//   permuted (`place`) such that all passes read and write without bank conflict. A pass works in place: a warp owns
//   16 columns of `first` and `second`, 16 rows of `third`; __syncthreads between passes of different warps, __syncwarp
//   between lanes of one. The third pass needs none of its own: a lane names the same rows for reading and for writing
// precision  every operand is two bf16 terms, of 16 bits together; of their products the one of both lower terms is
//   dropped: 2^-17 an operand, sums and twiddles in float: 1e-5 of the norm after six passes whatever the range of the
//   data. Operands of one bf16 term would cost about 3e-3, of one fp16 term about 7e-4 and a scale for every row, with a third of
//   the products: more than float16 outputs are rounded by (2e-4), less than bfloat16 ones (1.4e-3)
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::fft_conv {

using namespace tk;

// 16 x 16 of a left operand in two terms; 16 x 8 of a right one is half of it.
struct Operand {
  u32 high[4], low[4];
};
using Product = ptx::mma_form<float, bf16, bf16>;

// d += a b, one of its three products of terms. A product waits for the one before it in the same accumulator: those of
// several accumulators are made in turn.
TK_DEVICE void multiply_terms(int which, float (&d)[4], const Operand& a, u32 high0, u32 high1, u32 low0, u32 low1) {
  if (which == 0) ptx::mma<Product>(d, a.low, high0, high1);
  if (which == 1) ptx::mma<Product>(d, a.high, low0, low1);
  if (which == 2) ptx::mma<Product>(d, a.high, high0, high1);
}
TK_DEVICE void multiply(float (&d)[4], const Operand& a, u32 high0, u32 high1, u32 low0, u32 low1) {
#pragma unroll
  for (int which = 0; which < 3; ++which) multiply_terms(which, d, a, high0, high1, low0, low1);
}

// A pair of floats in two terms.
TK_DEVICE void split(u32& high, u32& low, float x, float y) {
  high = ptx::pack<bf16>(x, y);
  low = ptx::pack<bf16>(x - ptx::low<bf16>(high), y - ptx::high<bf16>(high));
}

// Eight floats in two terms.
TK_DEVICE void split_chunk(uint4& high, uint4& low, const float (&x)[8]) {
  split(high.x, low.x, x[0], x[1]);
  split(high.y, low.y, x[2], x[3]);
  split(high.z, low.z, x[4], x[5]);
  split(high.w, low.w, x[6], x[7]);
}

TK_DEVICE uint4 table(const void* tables, int at) { return __ldg(static_cast<const uint4*>(tables) + at); }
// Two neighbours of a table of complex numbers.
TK_DEVICE float4 twiddles(const void* tables, u32 section, u32 index) {
  return __ldg(static_cast<const float4*>(tables) + section + index / 2);
}
TK_DEVICE float2 twiddle(const void* tables, u32 section, u32 index) {
  return __ldg(static_cast<const float2*>(tables) + 2 * section + index);
}
TK_DEVICE float2 times(float2 a, float2 b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
TK_DEVICE float2 times_conj(float2 a, float2 b) { return {a.x * b.x + a.y * b.y, a.y * b.x - a.x * b.y}; }

// Four lanes hold rows g and g + 8 of two accumulators, 16 columns: lane t of them gets 8 columns (t % 2) of row
// g + 8 (t / 2).
TK_DEVICE void gather_row(float (&x)[8], const float (&left)[4], const float (&right)[4]) {
  u32 even[4], odd[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    even[i] = __float_as_uint(i % 2 ? right[i / 2 * 2] : left[i / 2 * 2]);
    odd[i] = __float_as_uint(i % 2 ? right[i / 2 * 2 + 1] : left[i / 2 * 2 + 1]);
  }
  detail::transpose_quad(even);
  detail::transpose_quad(odd);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(even[i]);
    x[2 * i + 1] = __uint_as_float(odd[i]);
  }
}

// -x of a pair of bf16.
TK_DEVICE u32 minus(u32 pair) { return pair ^ 0x80008000u; }

// A left matrix of Rows x Depth tiles: in registers where it is small, else read again for every strip. Back: the
// transpose of a symmetric complex matrix as a real one, which is it with the imaginary parts' signs changed.
template <int Rows, int Depth, bool Back = false>
struct Matrix {
  static constexpr bool held = Rows * Depth <= 4;
  const void* tables;
  int section;
  Operand kept[held ? Rows : 1][held ? Depth : 1];

  TK_DEVICE Matrix(const void* all, int first) : tables(all), section(first) {
    if constexpr (held)
#pragma unroll
      for (int m = 0; m < Rows; ++m)
#pragma unroll
        for (int k = 0; k < Depth; ++k) kept[m][k] = fetch(m, k);
  }
  TK_DEVICE Operand fetch(int m, int k) const {
    const int at = section + 64 * (Depth * m + k) + lane_index();
    const uint4 high = table(tables, at), low = table(tables, at + 32);
    if constexpr (Back)
      return {{high.x, minus(high.y), minus(high.z), high.w}, {low.x, minus(low.y), minus(low.z), low.w}};
    else
      return {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
  }
  TK_DEVICE Operand operator()(int m, int k) const {
    if constexpr (held)
      return kept[m][k];
    else
      return fetch(m, k);
  }
};

template <int Index>
struct Transform {
  static constexpr Plan plan = kPlans[Index];
  static constexpr Tables tables_at = Tables(plan);
  static constexpr int N1 = plan.first, N2 = plan.second, N3 = plan.third, M = plan.points(), Warps = plan.warps;
  static constexpr int chunks = N3 / 8;            // of a run of n3
  static constexpr int columns = N2 * N3 / 8;      // chunks from n1 to n1 + 1
  static constexpr int units = M / (16 * N3) / Warps;  // of the third pass, for a warp
  static_assert(16 * Warps % N2 == 0, "a warp's rows of the third pass have the same j2 in every unit");
  static_assert(M % (16 * N3 * Warps) == 0 && columns % (2 * Warps) == 0 && N1 * chunks % (2 * Warps) == 0);

  u32 memory;          // the data in shared memory
  const void* tables;

  TK_DEVICE Transform(const void* shared, const void* all) : memory(ptx::shared_address(shared)), tables(all) {}

  // Plane 0 re, 1 im of the upper terms, 2 re, 3 im of the lower ones. Of 8 chunks one n1, one n2 or one row apart, and
  // of 4 pairs of neighbours, no two lie in the same 16 of 128 bytes.
  TK_DEVICE static constexpr u32 permuted(u32 chunk) {
    u32 at = chunk;
    if constexpr (N3 == 16) at ^= chunk / 8 % 2;
    if constexpr (N2 > 1) {
      const u32 row = chunk / columns;
      at ^= 2 * row % 8 ^ row / 4 % 2;
    }
    return 16 * at;
  }
  // Of chunk a + b, which have no bit in common, b as `permuted` gives it, which is linear in bits: what depends on the
  // lane alone is computed once.
  TK_DEVICE u32 place(u32 plane, u32 a, u32 b = 0) const { return memory + ((2 * M * plane + permuted(a)) ^ b); }

  // ---- Strips of 16 columns: the passes over n1 and n2 -----------------------------------------------------------
  // Column chunks of a strip, of row 0, and where they lie; the rows lie `stride` chunks apart, and rows 8 apart, which
  // `place` permutes alike, so many bytes.
  struct Strip {
    u32 first[2], at[2], stride;
    TK_DEVICE Strip(u32 left, u32 to_right, u32 rows)
        : first{left, left + to_right}, at{permuted(left), permuted(left) ^ permuted(to_right)}, stride(rows) {}
    TK_DEVICE u32 eight_rows() const { return 128 * stride; }
  };
  TK_DEVICE static Strip outer_strip(u32 s) { return {2 * s, 1, columns}; }
  TK_DEVICE static Strip inner_strip(u32 s) {
    return {2 * s / chunks * columns + 2 * s % chunks, chunks > 1 ? 1 : columns, chunks};
  }

  // acc = matrix * data of a strip; Complex: a step of 16 rows is 8 complex ones.
  template <bool Complex, int Rows, int Depth, bool Back>
  TK_DEVICE void product(float (&acc)[Rows][2][4], const Matrix<Rows, Depth, Back>& matrix, const Strip& strip) const {
    const int lane = lane_index(), row = Complex ? lane % 8 : lane % 16, plane = Complex ? lane / 8 : lane / 16 * 2;
    const u32 at[2] = {place(plane, row * strip.stride, strip.at[0]), place(plane, row * strip.stride, strip.at[1])};
#pragma unroll
    for (int m = 0; m < Rows; ++m)
#pragma unroll
      for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[m][u][e] = 0.0f;
    constexpr bool held = Matrix<Rows, Depth, Back>::held;
    constexpr int unroll = held ? Depth : 1, together = held ? Rows : 1;
#pragma unroll unroll
    for (int k = 0; k < Depth; ++k) {
      u32 b[2][4];  // upper terms of both halves of the step, lower terms
#pragma unroll
      for (int u = 0; u < 2; ++u) ptx::ldmatrix_x4_trans(b[u], at[u] + (Complex ? k : 2 * k) * strip.eight_rows());
#pragma unroll
      for (int m = 0; m < Rows; m += together) {
        Operand a[together];
#pragma unroll
        for (int i = 0; i < together; ++i) a[i] = matrix(m + i, k);
#pragma unroll
        for (int which = 0; which < 3; ++which)
#pragma unroll
          for (int i = 0; i < together; ++i)
#pragma unroll
            for (int u = 0; u < 2; ++u) multiply_terms(which, acc[m + i][u], a[i], b[u][0], b[u][1], b[u][2], b[u][3]);
      }
    }
    __syncwarp();
  }
  // Twiddle factors of the rows of a lane and the columns of a run of n3: the same in every strip.
  template <int Rows>
  struct Waves {
    float4 x[Rows][chunks];
    TK_DEVICE Waves(const void* tables, int section) {
#pragma unroll
      for (int m = 0; m < Rows; ++m)
#pragma unroll
        for (int b = 0; b < chunks; ++b)
          x[m][b] = twiddles(tables, section, (8 * m + lane_index() / 4) * N3 + 8 * b + 2 * (lane_index() % 4));
    }
    // Of column chunk u of a strip: a strip begins at a multiple of a run, or holds two runs of one chunk.
    TK_DEVICE void apply(float2 (&z)[2], int m, int u) const {
      const float4& w = x[m][u % chunks];
      z[0] = times(z[0], {w.x, w.y});
      z[1] = times(z[1], {w.z, w.w});
    }
  };
  // The 16 bytes that this lane names for stmatrix, of the first 8 rows.
  TK_DEVICE u32 row_place(const Strip& strip, int u) const {
    return place(lane_index() / 8, lane_index() % 8 * strip.stride, strip.at[u]);
  }
  // Complex accumulators, after factor(z, m, u) (of two neighbouring columns), into the strip they came from.
  template <int Rows, class Factor>
  TK_DEVICE void put(const float (&acc)[Rows][2][4], const Strip& strip, Factor factor) const {
#pragma unroll
    for (int m = 0; m < Rows; ++m)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float(&x)[4] = acc[m][u];
        float2 z[2] = {{x[0], x[2]}, {x[1], x[3]}};
        factor(z, m, u);
        u32 words[4];
        split(words[0], words[2], z[0].x, z[1].x);
        split(words[1], words[3], z[0].y, z[1].y);
        ptx::stmatrix_x4(row_place(strip, u) + m * strip.eight_rows(), words);
      }
  }

  // A chunk of 8 samples to `at` in plane re or im, and so to its lower terms' plane.
  TK_DEVICE void put_chunk(u32 at, const float (&x)[8]) const {
    uint4 high, low;
    split_chunk(high, low, x);
    ptx::st_shared_v4(at, high);
    ptx::st_shared_v4(at + 4 * M, low);
  }

  // ---- Forward: fill(strip) puts the samples of a strip where `product` reads them; Complex: both parts ------------
  template <bool Complex, class Fill>
  TK_DEVICE void first_of(Fill fill) const {
    constexpr int rows = N1 / 8, depth = Complex ? N1 / 8 : N1 / 16;
    const Matrix<rows, depth> matrix(tables, Complex ? tables_at.first : tables_at.first_real);
    const Waves<rows> fine(tables, tables_at.fine);
    const int lane = lane_index();
#pragma unroll 1
    for (u32 s = warp_index(); s < columns / 2; s += Warps) {
      const Strip strip = outer_strip(s);
      fill(strip);
      float acc[rows][2][4];
      product<Complex>(acc, matrix, strip);
      put(acc, strip, [&](float2(&z)[2], int m, int u) {
        if constexpr (N2 > 1) {
          const u32 n2 = strip.first[u] / chunks;
          const float2 coarse = twiddle(tables, tables_at.coarse, (8 * m + lane / 4) * N2 + n2);
          z[0] = times(z[0], coarse);
          z[1] = times(z[1], coarse);
        }
        fine.apply(z, m, u);
      });
    }
  }
  // load(x, im, n) gives samples n .. n + 7 of z.
  template <bool Complex, class Load>
  TK_DEVICE void first(Load load) const {
    const int lane = lane_index();
    first_of<Complex>([&](const Strip& strip) {
#pragma unroll
      for (int i = 0; i < N1 / 16; ++i)
#pragma unroll
        for (int im = 0; im <= Complex; ++im) {
          const int column = lane % 2 + lane / 2 * columns;
          float x[8];
          load(x, im, 8 * static_cast<int>(strip.first[0] + column + 16 * i * columns));
          put_chunk(place(im, column, strip.at[0]) + 2 * i * strip.eight_rows(), x);
        }
      __syncwarp();
    });
  }
  TK_DEVICE void second() const {
    const Matrix<N2 / 8, N2 / 8> matrix(tables, tables_at.second);
    const Waves<N2 / 8> inner(tables, tables_at.inner);
#pragma unroll 1
    for (u32 s = warp_index(); s < N1 * chunks / 2; s += Warps) {
      const Strip strip = inner_strip(s);
      float acc[N2 / 8][2][4];
      product<true>(acc, matrix, strip);
      put(acc, strip, [&](float2(&z)[2], int m, int u) { inner.apply(z, m, u); });
    }
  }

  // ---- The pass over n3: 16 rows (j1, j2) of N3 a unit ------------------------------------------------------------
  // Values of a unit: re[b], im[b] as accumulators of 8 columns (b) of 16 rows.
  struct Values {
    float re[chunks][4], im[chunks][4];
  };
  TK_DEVICE u32 row_place(u32 unit, int b, int term) const {  // the 16 bytes that this lane names for ldmatrix
    const int lane = lane_index();  // the chunk of b = 0 is even where there is another
    return (place(lane / 16, lane % 16 * chunks, permuted(16 * chunks * unit)) ^ 16 * b) + 4 * M * term;
  }
  // The matrix of the pass and the factors of the way back, which are the same for all units of a warp.
  struct Third {
    uint4 matrix[chunks][chunks][2];  // step, 8 columns, re or im: two registers of the upper terms, of the lower
    float4 inner[chunks][2];          // 8 columns, upper or lower half of the rows
    TK_DEVICE explicit Third(const void* tables) {
#pragma unroll
      for (int b = 0; b < chunks; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int k = 0; k < chunks; ++k)
            matrix[k][b][half] = table(tables, tables_at.third + 64 * (chunks * k + b) + 32 * half + lane_index());
          const int row = 16 * warp_index() + 8 * half + lane_index() / 4, n3 = 8 * b + 2 * (lane_index() % 4);
          inner[b][half] = N2 > 1 ? twiddles(tables, tables_at.inner, row % N2 * N3 + n3)
                                  : twiddles(tables, tables_at.fine, row * N3 + n3);
        }
    }
    template <bool Back>
    TK_DEVICE void multiply_by(Values& z, const Operand (&a)[chunks]) const {
#pragma unroll
      for (int b = 0; b < chunks; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) z.re[b][e] = z.im[b][e] = 0.0f;
#pragma unroll
      for (int k = 0; k < chunks; ++k)
#pragma unroll
        for (int which = 0; which < 3; ++which)
#pragma unroll
          for (int b = 0; b < chunks; ++b) {
            uint4 re = matrix[k][b][0], im = matrix[k][b][1];
            if constexpr (Back) re.y = minus(re.y), re.w = minus(re.w), im.x = minus(im.x), im.z = minus(im.z);
            multiply_terms(which, z.re[b], a[k], re.x, re.y, re.z, re.w);
            multiply_terms(which, z.im[b], a[k], im.x, im.y, im.z, im.w);
          }
    }
  };
  static_assert(N2 > 1 || units == 1, "with two factors a warp has the factors of one unit only");
  TK_DEVICE void third(const Third& pass, Values& z, int unit) const {
    Operand a[chunks];
#pragma unroll
    for (int b = 0; b < chunks; ++b) {
      ptx::ldmatrix_x4(a[b].high, row_place(unit, b, 0));
      ptx::ldmatrix_x4(a[b].low, row_place(unit, b, 1));
    }
    pass.template multiply_by<false>(z, a);
  }
  TK_DEVICE static void as_operands(Operand (&a)[chunks], const Values& z) {
#pragma unroll
    for (int b = 0; b < chunks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        split(a[b].high[half], a[b].low[half], z.re[b][2 * half], z.re[b][2 * half + 1]);
        split(a[b].high[2 + half], a[b].low[2 + half], z.im[b][2 * half], z.im[b][2 * half + 1]);
      }
  }
  TK_DEVICE void third_back(const Third& pass, const Values& values, int unit) const {
    Operand a[chunks];
    as_operands(a, values);
    Values z;
    pass.template multiply_by<true>(z, a);
#pragma unroll
    for (int b = 0; b < chunks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4& w = pass.inner[b][half];
        float &r0 = z.re[b][2 * half], &r1 = z.re[b][2 * half + 1], &i0 = z.im[b][2 * half], &i1 = z.im[b][2 * half + 1];
        const float2 x = times_conj({r0, i0}, {w.x, w.y}), y = times_conj({r1, i1}, {w.z, w.w});
        r0 = x.x, i0 = x.y, r1 = y.x, i1 = y.y;
      }
    as_operands(a, z);
#pragma unroll
    for (int b = 0; b < chunks; ++b) {
      ptx::stmatrix_x4(row_place(unit, b, 0), a[b].high);
      ptx::stmatrix_x4(row_place(unit, b, 1), a[b].low);
    }
  }
  // Where a lane's values of a unit lie in a spectrum: pairs of complex numbers.
  TK_DEVICE static int value_at(int unit, int b, int half) {
    return ((unit * chunks + b) * 2 + half) * 32 + lane_index();
  }

  // ---- Backward -----------------------------------------------------------------------------------------------------
  TK_DEVICE void second_back() const {
    const Matrix<N2 / 8, N2 / 8, true> matrix(tables, tables_at.second);
    const int lane = lane_index();
#pragma unroll 1
    for (u32 s = warp_index(); s < N1 * chunks / 2; s += Warps) {
      const Strip strip = inner_strip(s);
      float acc[N2 / 8][2][4];
      product<true>(acc, matrix, strip);
      put(acc, strip, [&](float2(&z)[2], int m, int u) {
        const u32 j1 = strip.first[u] / columns, b = strip.first[u] % chunks, n2 = 8 * m + lane / 4;
        const float2 coarse = twiddle(tables, tables_at.coarse, j1 * N2 + n2);
        const float4 fine = twiddles(tables, tables_at.fine, j1 * N3 + 8 * b + 2 * (lane % 4));
        z[0] = times_conj(times_conj(z[0], coarse), {fine.x, fine.y});
        z[1] = times_conj(times_conj(z[1], coarse), {fine.z, fine.w});
      });
    }
  }
  // store(x, n): real samples n .. n + 7 of the result, each once, by some lane.
  template <class Store>
  TK_DEVICE void last_real(Store store) const {
    const Matrix<N1 / 16, N1 / 8> matrix(tables, tables_at.last_real);
    const int lane = lane_index();
#pragma unroll 1
    for (u32 s = warp_index(); s < columns / 2; s += Warps) {
      const Strip strip = outer_strip(s);
      float acc[N1 / 16][2][4];
      product<true>(acc, matrix, strip);
#pragma unroll
      for (int m = 0; m < N1 / 16; ++m) {
        float x[8];
        gather_row(x, acc[m][0], acc[m][1]);
        const int t = lane % 4, n1 = 16 * m + lane / 4 + 8 * (t / 2);
        store(x, 8 * static_cast<int>(strip.first[0] + t % 2 + n1 * columns));
      }
    }
  }
  // store(z, n): complex samples n, n + 1 of the result.
  template <class Store>
  TK_DEVICE void last(Store store) const {
    const Matrix<N1 / 8, N1 / 8> matrix(tables, tables_at.last);
    const int lane = lane_index();
#pragma unroll 1
    for (u32 s = warp_index(); s < columns / 2; s += Warps) {
      const Strip strip = outer_strip(s);
      float acc[N1 / 8][2][4];
      product<true>(acc, matrix, strip);
#pragma unroll
      for (int m = 0; m < N1 / 8; ++m)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const float(&x)[4] = acc[m][u];
          const float2 z[2] = {{x[0], x[2]}, {x[1], x[3]}};
          store(z, 8 * static_cast<int>(strip.first[u] + (8 * m + lane / 4) * columns) + 2 * (lane % 4));
        }
    }
  }

  // ---- Whole transforms but for their ends: what stands between `first` and the values, the values and `last` --------
  TK_DEVICE void to_values() const {
    __syncthreads();
    if constexpr (N2 > 1) {
      second();
      between_second_and_third();
    }
  }
  TK_DEVICE void from_values() const {
    if constexpr (N2 > 1) {
      between_second_and_third();
      second_back();
    }
    __syncthreads();
  }

 private:
  // A strip of the second pass is a unit of the third where both are 16 x 16 or two of 8 x 8: the same warp's.
  TK_DEVICE static void between_second_and_third() {
    if constexpr (N2 == N3)
      __syncwarp();
    else
      __syncthreads();
  }
};

}  // namespace tkpy::fft_conv
