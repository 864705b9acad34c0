// The outer factor of a row of 8 M' points that the 8 CTAs of a cluster hold, M' of Transform<Index> each; cluster.cu is
// the whole. n = n0 M' + n', j = j0 + 8 j':
//   fold     CTA r reads the columns n' of its eighth of M' for all n0, samples of a row or a channel's taps, and makes the
//            first step of their transforms of 8 over n0 at the frequencies j0 + 1/4, those of its lanes' parity of j0
//   scatter  makes the second, times w^(n' (j0 + 1/4)), and writes those of j0 into CTA j0, where `first` reads them
//   first .. last  of CTA j0, at whole frequencies
//   last     leaves its samples in place, times the conjugate factors, as floats: planes re of even columns, of odd ones,
//            im of even ones, of odd ones. stmatrix takes a float for a pair of 16 bits, so `place` holds for them as well
//   gather   CTA r reads its columns of all j0, and transforms of 8 back give real samples of all n0
// Lanes i and i + 16 of a warp share a chunk of 8 columns: they make the even and the odd j0, later the even and the odd
// columns. CTAs begin at different j0, or all would write into one at a time: such a shift is a factor of a power before
// the transform, of which the shift of 1/4 takes one anyway.
//
// ClusterSpectrum is what such a transform of the taps leaves: in CTA j0 its frequencies' values, for all rows of the channel.
//
// cluster barriers  who has `opened` its memory lets others write there: when it begins, when it has made the spectrum of
//   what they wrote, and `gather` when it has read. `scatter` waits for all before it writes, and has a barrier after its
//   writes; another is between `last` and `gather`. `finish` waits too: nobody reads the memory of a CTA that has gone
// bytes  7/8 of 8 a point there and 7/8 of 8 back between CTAs, 16 bytes an access, 16 neighbours of a warp side by side
#pragma once

#include "filter.cuh"
#include "rows.cuh"
#include "tk/ptx_micro.cuh"

namespace tkpy::fft_conv {

// Four complex numbers to their transform, at frequencies in order; Back: to 4 times the one back.
template <bool Back>
TK_DEVICE void transform_four(float2 (&z)[4]) {
  const float2 a = {z[0].x + z[2].x, z[0].y + z[2].y}, b = {z[0].x - z[2].x, z[0].y - z[2].y};
  const float2 c = {z[1].x + z[3].x, z[1].y + z[3].y}, d = {z[1].x - z[3].x, z[1].y - z[3].y};
  const float2 turned = Back ? float2{-d.y, d.x} : float2{d.y, -d.x};
  z[0] = {a.x + c.x, a.y + c.y};
  z[1] = {b.x + turned.x, b.y + turned.y};
  z[2] = {a.x - c.x, a.y - c.y};
  z[3] = {b.x - turned.x, b.y - turned.y};
}

// exp(i pi turns) to the powers 0 .. 7.
TK_DEVICE void powers(float2 (&wave)[kRowCluster], float half_turns) {
  wave[0] = {1.0f, 0.0f};
  sincospif(half_turns, &wave[1].y, &wave[1].x);
#pragma unroll
  for (int i = 2; i < kRowCluster; ++i) wave[i] = times(wave[i - 1], wave[1]);
}

// The taps of a channel as complex samples of a circle of `points`: one of lag j is the real part of sample j, one of lag -j
// the imaginary part of sample points - j (spectrum.cu). The skip is added to that of lag 0.
struct ChannelTaps {
  const float *k, *k_reverse;
  const float* skip;  // this channel's, or null
  int used, used_reverse, points;

  TK_DEVICE ChannelTaps(const SpectrumParams& p, int channel, int of_circle)
      : k(p.k + static_cast<long long>(channel) * p.taps),
        k_reverse(p.k_reverse + static_cast<long long>(channel) * p.taps_reverse),
        skip(p.skip ? p.skip + channel : nullptr),
        used(p.used),
        used_reverse(p.used_reverse),
        points(of_circle) {}

  // Taps i .. i + 3 of a filter, zero past the end; i is a multiple of 4.
  TK_DEVICE static float4 load(const float* taps, int i, int count) {
    if (i + 4 <= count && reinterpret_cast<unsigned long long>(taps) % 16 == 0)
      return __ldg(reinterpret_cast<const float4*>(taps + i));
    float x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = i + e < count ? __ldg(taps + i + e) : 0.0f;
    return make_float4(x[0], x[1], x[2], x[3]);
  }
  // Samples n .. n + 3; n is a multiple of 4, so that those of lags below 0 are taps of a multiple of 4 as well.
  TK_DEVICE void samples(float2 (&z)[4], int n) const {
    float4 ahead = load(k, n, used);
    const float4 back = load(k_reverse, points - n - 4, used_reverse);
    if (n == 0 && skip) ahead.x += *skip;
    z[0] = {ahead.x, back.w}, z[1] = {ahead.y, back.z}, z[2] = {ahead.z, back.y}, z[3] = {ahead.w, back.x};
  }
};

template <int Index>
struct ClusterRow {
  using F = Transform<Index>;
  static constexpr int M = F::M;
  static_assert(M / 8 / kRowCluster == 16 * F::Warps, "two lanes a chunk of a CTA's columns");

  const F& transform;
  int rank, half, chunk;  // r and j0; which lane of a chunk this is, and of which

  TK_DEVICE ClusterRow(const F& f, int of_cluster)
      : transform(f),
        rank(of_cluster),
        half(lane_index() / 16),
        chunk((rank * F::Warps + warp_index()) * 16 + lane_index() % 16) {}
  TK_DEVICE static float2 factor(int column, int j0) {  // w^(n' (j0 + 1/4)), w = exp(-2 pi i / (8 M')): an exact phase
    float sine, cosine;
    sincospif(static_cast<float>(column * (4 * j0 + 1)) * (0.5f / (kRowCluster * M)), &sine, &cosine);
    return {cosine, -sine};
  }
  // Plane 0 of this lane's chunk in another CTA; the next plane, and that of the next parity, are so many bytes further.
  TK_DEVICE u32 there(int j0) const { return ptx::mapa(transform.place(0, chunk), static_cast<u32>(j0)); }
  static constexpr u32 plane = 2 * M;

  TK_DEVICE static void open() { cluster_arrive(); }
  TK_DEVICE static void finish() { cluster_wait(); }

  TK_DEVICE int begin() const { return (half + 2 * rank) % kRowCluster; }  // j0 = begin, begin + 2, ..
  TK_DEVICE void shifts(float2 (&wave)[kRowCluster]) const {
    powers(wave, -static_cast<float>(4 * begin() + 1) / (2 * kRowCluster));
  }
  TK_DEVICE void fold(float2 (&z)[8][4], const Gated& v) const {
    float2 wave[kRowCluster];
    shifts(wave);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {  // n0 = i, i + 1, i + 4, i + 5: of all at once registers would not hold the gates too
      float x[4][8];
      v.load(x, [&](int j) { return (i + j % 2 + j / 2 * 4) * M + 8 * chunk; });
#pragma unroll
      for (int e = 0; e < 8; ++e)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 &low = wave[i + j], &high = wave[i + j + 4];
          z[e][i + j] = {x[j][e] * low.x + x[j + 2][e] * high.x, x[j][e] * low.y + x[j + 2][e] * high.y};
        }
    }
  }
  TK_DEVICE void fold(float2 (&z)[8][4], const ChannelTaps& taps) const {
    float2 wave[kRowCluster];
    shifts(wave);
#pragma unroll
    for (int i = 0; i < 2 * kRowCluster; ++i) {  // 4 columns of all n0, then the other 4
      const int first = i / kRowCluster * 4, n0 = i % kRowCluster;
      float2 x[4];
      taps.samples(x, n0 * M + 8 * chunk + first);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float2& sum = z[first + e][n0 % 4];
        const float2 y = times(x[e], wave[n0]);
        sum = n0 < 4 ? y : float2{sum.x + y.x, sum.y + y.y};
      }
    }
  }

  TK_DEVICE void scatter(float2 (&z)[8][4]) const {
#pragma unroll
    for (int e = 0; e < 8; ++e) transform_four<false>(z[e]);
    cluster_wait();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int j0 = (begin() + 2 * k) % kRowCluster;
      const float2 step = factor(1, j0);
      float2 turn = factor(8 * chunk, j0);
      float re[8], im[8];
#pragma unroll
      for (int e = 0; e < 8; ++e, turn = times(turn, step)) {
        const float2 y = times(z[e][k], turn);
        re[e] = y.x;
        im[e] = y.y;
      }
      const u32 to = there(j0);
      uint4 high, low;
      split_chunk(high, low, re);
      ptx::st_cluster_v4(to, high);
      ptx::st_cluster_v4(to + 2 * plane, low);
      split_chunk(high, low, im);
      ptx::st_cluster_v4(to + plane, high);
      ptx::st_cluster_v4(to + 3 * plane, low);
    }
    cluster_sync();
  }

  TK_DEVICE void first() const {
    transform.template first_of<true>([](const typename F::Strip&) {});
  }
  // A row, or taps, through `first`; through all that comes before the third pass.
  template <class Samples>
  TK_DEVICE void bring(const Samples& samples) const {
    float2 z[8][4];
    fold(z, samples);
    scatter(z);
    first();
  }
  template <class Samples>
  TK_DEVICE void to_values(const Samples& samples) const {
    bring(samples);
    transform.to_values();
  }
  TK_DEVICE void last() const {
    constexpr int rows = F::N1 / 8;
    const Matrix<rows, rows> matrix(transform.tables, F::tables_at.last);
    const int lane = lane_index();
    const float2 step = factor(1, rank);
    float2 of_row[rows];
#pragma unroll
    for (int m = 0; m < rows; ++m) of_row[m] = factor(8 * (8 * m + lane / 4) * F::columns, rank);
#pragma unroll 1
    for (int s = warp_index(); s < F::columns / 2; s += F::Warps) {
      const typename F::Strip strip = F::outer_strip(s);
      float acc[rows][2][4];
      transform.template product<true>(acc, matrix, strip);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float2 of_column = factor(8 * strip.first[u] + 2 * (lane % 4), rank);
#pragma unroll
        for (int m = 0; m < rows; ++m) {
          const float(&x)[4] = acc[m][u];
          const float2 even = times(of_column, of_row[m]), odd = times(even, step);
          const float2 y = times_conj({x[0], x[2]}, even), z = times_conj({x[1], x[3]}, odd);
          const u32 words[4] = {__float_as_uint(y.x), __float_as_uint(z.x), __float_as_uint(y.y), __float_as_uint(z.y)};
          ptx::stmatrix_x4(transform.row_place(strip, u) + m * strip.eight_rows(), words);
        }
      }
    }
  }

  // What the row is at the columns of one parity of this lane's chunk, for all n0.
  TK_DEVICE void gather(float2 (&z)[4][kRowCluster]) const {
    cluster_sync();
#pragma unroll
    for (int i = 0; i < kRowCluster; ++i) {
      const u32 from = there((rank + i) % kRowCluster) + half * plane;
      const ptx::quad re = ptx::load_cluster_v4(from), im = ptx::load_cluster_v4(from + 2 * plane);
#pragma unroll
      for (int e = 0; e < 4; ++e) z[e][i] = {__uint_as_float(re.x[e]), __uint_as_float(im.x[e])};
    }
    open();
    constexpr float root = 0.707106781186547524f;
    const float2 eighths[4] = {{1.0f, 0.0f}, {root, root}, {0.0f, 1.0f}, {-root, root}};
    float2 wave[kRowCluster];
    powers(wave, static_cast<float>(4 * rank + 1) / (2 * kRowCluster));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float2 even[4], odd[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 a = z[e][i], b = z[e][i + 4];
        even[i] = {a.x + b.x, a.y + b.y};
        odd[i] = times({a.x - b.x, a.y - b.y}, eighths[i]);
      }
      transform_four<true>(even);
      transform_four<true>(odd);
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // n0 = i here, i + 4 in the other lane, or the other way round
        const float2 low = i % 2 ? odd[i / 2] : even[i / 2], high = i % 2 ? odd[2 + i / 2] : even[2 + i / 2];
        z[e][i] = times(low, wave[i]);
        z[e][i + 4] = times(high, wave[i + 4]);
      }
    }
  }
  // Rows i of this lane: samples place(i) .. + 7, the real or the imaginary parts of what two lanes have gathered.
  TK_DEVICE int place(int i) const { return (4 * half + i) * M + 8 * chunk; }
  template <bool Imaginary = false>
  TK_DEVICE void as_rows(float (&rows)[4][8], const float2 (&z)[4][kRowCluster]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float a = Imaginary ? z[e][i].y : z[e][i].x, b = Imaginary ? z[e][i + 4].y : z[e][i + 4].x;
        const float kept = half ? b : a, taken = __shfl_xor_sync(0xffffffffu, half ? a : b, 16);
        rows[i][2 * e] = half ? taken : kept;
        rows[i][2 * e + 1] = half ? kept : taken;
      }
  }
  // out = gate x, or x, of the rows of `gather`.
  TK_DEVICE void store(const Row& out, const Row& gate, const float (&rows)[4][8]) const {
    uint4 gates[4] = {};
    if (gate.data)
#pragma unroll
      for (int i = 0; i < 4; ++i) gates[i] = gate.words(place(i));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (place(i) >= out.length) continue;
      float y[8] = {};
      if (gate.data) gate.floats(y, gates[i]);
#pragma unroll
      for (int e = 0; e < 8; ++e) y[e] = gate.data ? y[e] * rows[i][e] : rows[i][e];
      out.store(y, place(i));
    }
  }
};

// The values of a channel's taps at the frequencies of a CTA, in its shared memory behind the row. Floats of 24 bits, of
// which 16 are the mantissa's, as in the two bf16 terms of an operand: four take three words, whose last bytes are the upper
// ones of the fourth. A lane reads what it wrote itself.
template <int Index>
struct ClusterSpectrum {
  using F = Transform<Index>;
  using Values = typename F::Values;
  static_assert(F::chunks == 2, "16 floats of a lane's unit are 12 words");
  u32 memory;

  TK_DEVICE explicit ClusterSpectrum(const F& transform) : memory(transform.memory + 8 * F::M) {}

  TK_DEVICE u32 place(int unit, int i) const { return memory + 16 * ((3 * unit + i) * 32 + lane_index()); }
  TK_DEVICE static u32 rounded(float x) {  // NaN stays one
    return x == x ? __float_as_uint(x) + 0x80u : __float_as_uint(x);
  }
  TK_DEVICE static float of_upper(u32 word) { return __uint_as_float(word & 0xffffff00u); }

  TK_DEVICE void put(int unit, const float4 (&pairs)[2][2]) const {
    u32 words[12];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4& pair = pairs[i / 2][i % 2];
      const u32 fourth = rounded(pair.w);
      words[3 * i] = __byte_perm(fourth, rounded(pair.x), 0x7651);
      words[3 * i + 1] = __byte_perm(fourth, rounded(pair.y), 0x7652);
      words[3 * i + 2] = __byte_perm(fourth, rounded(pair.z), 0x7653);
    }
#pragma unroll
    for (int i = 0; i < 3; ++i)
      ptx::st_shared_v4(place(unit, i), make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]));
  }
  TK_DEVICE void get(float4 (&pairs)[2][2], int unit) const {
    u32 words[12];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const uint4 x = ptx::ld_shared_v4(place(unit, i));
      words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 a = words[3 * i], b = words[3 * i + 1], c = words[3 * i + 2];
      const u32 fourth = __byte_perm(__byte_perm(a, b, 0x0400), c, 0x4210);
      pairs[i / 2][i % 2] = make_float4(of_upper(a), of_upper(b), of_upper(c), of_upper(fourth));
    }
  }

  // Of taps, by all CTAs of the cluster; to global memory too where `kept` is there, in float, as `load` reads it.
  TK_DEVICE void make(const ClusterRow<Index>& cluster, const ChannelTaps& taps, float4* kept) const {
    const F& transform = cluster.transform;
    cluster.to_values(taps);
    const typename F::Third pass(transform.tables);
#pragma unroll 1
    for (int i = 0; i < F::units; ++i) {
      const int unit = warp_index() + i * F::Warps;
      Values z;
      transform.third(pass, z, unit);
      float4 pairs[2][2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float4& pair = pairs[j / 2][j % 2];
        pair = pair_of(z, j / 2, j % 2, scale);
        if (kept) kept[F::value_at(unit, j / 2, j % 2)] = pair;
      }
      put(unit, pairs);
    }
    cluster.open();
  }
  TK_DEVICE void load(const float4* spectrum) const {
#pragma unroll 1
    for (int i = 0; i < F::units; ++i) {
      const int unit = warp_index() + i * F::Warps;
      put(unit, Taps<Index>(spectrum, unit).x);
    }
  }
  static constexpr float scale = 1.0f / (kRowCluster * F::M);  // of the inverse transform
};

}  // namespace tkpy::fft_conv
