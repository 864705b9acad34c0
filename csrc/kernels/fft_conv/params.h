// What the two sides of fft_conv share: the factors of its transforms, where their tables lie, the parameter blocks.
#pragma once

namespace tkpy::fft_conv {

// A transform of points() = first * second * third complex numbers, which a CTA holds in shared memory, and which makes
// circles of twice as many real samples. `second` 1: two factors. `warps` work on one row.
struct Plan {
  int first, second, third, warps;
  constexpr int points() const { return first * second * third; }
  constexpr int threads() const { return 32 * warps; }
  constexpr int shared_bytes() const { return 8 * points(); }
};
constexpr Plan kPlans[] = {{16, 1, 16, 1},  {16, 8, 8, 2},   {16, 8, 16, 4},
                           {16, 16, 16, 4}, {32, 16, 16, 8}, {32, 32, 16, 16}};

constexpr int kMostCluster = 8;     // CTAs of the backward that add their sums up
constexpr int kInRegisters = 4096;  // most points whose sums a CTA of it keeps in registers; values of v then lie in shared
                                    // memory behind the row
constexpr int backward_shared_bytes(const Plan& p) { return (p.points() <= kInRegisters ? 2 : 1) * p.shared_bytes(); }

// One buffer holds a plan's tables, in this order, in units of 16 bytes: DFT matrices as fragments of mma.sync in two
// bf16 terms (64 units a fragment, upper and lower term), then the twiddle factors in float. tkpy/ops/fft_conv/tables.py.
struct Tables {
  int first_real, last_real;  // 2 first x first and its transpose: real signals go in and come out
  int first, last;            // 2 first x 2 first and its transpose
  int second, third;          // symmetric: their transposes, which go back, are they with other signs
  int coarse;                 // exp(-2 pi i n2 third (j1 + 1/4) / points) at [j1][n2]
  int fine;                   // exp(-2 pi i n3 (j1 + 1/4) / points) at [j1][n3]
  int inner;                  // exp(-2 pi i n3 j2 / (second third)) at [j2][n3]
  int end;
  constexpr explicit Tables(const Plan& p) {
    const int fragment = 64, a = p.first / 8, b = p.second / 8, c = p.third / 8;
    first_real = 0;
    last_real = first_real + fragment * a * a / 2;
    first = last_real + fragment * a * a / 2;
    last = first + fragment * a * a;
    second = last + fragment * a * a;
    third = second + fragment * b * b;
    coarse = third + fragment * c * c;
    fine = coarse + p.first * p.second / 2;
    inner = fine + p.first * p.third / 2;
    end = inner + p.second * p.third / 2;
  }
};

// Rows of 16-bit samples: row (b, h) begins `b * batch + h * channel` elements from `data`, samples are contiguous.
struct Rows {
  const void* data;
  long long batch, channel;
  int vectors;  // every row begins at a multiple of 16 bytes
};

// out = post conv(v), v = pre u; out2 the same with post2. Absent tensors are null.
struct ConvParams {
  Rows u, pre, post, post2, out, out2;
  const void* spectrum;   // [channels, points] as `spectrum` leaves it
  const void* tables;
  int batch, channels, length;
  int half;               // 1: samples are fp16, 0: bf16
  int correlate;          // 1: with the conjugate spectrum, the adjoint
};

// Rows longer than a CTA holds: N0 M' points, n = n0 M' + n', j = j0 + N0 j'. The passes over n0 are kernels of their own,
// but for the N0 of a cluster.
constexpr int kRowCluster = 8;      // N0 of rows that stay on the chip: the CTAs of a cluster that holds one
constexpr int row_cluster_resident(const Plan& p) { return 16 / p.warps; }  // CTAs of it that a multiprocessor holds
constexpr int row_cluster_bytes(const Plan& p) { return p.shared_bytes() + 6 * p.points(); }  // a row, and a spectrum
constexpr bool row_cluster_fits(const Plan& p) { return row_cluster_resident(p) * (row_cluster_bytes(p) + 1024) <= 228 * 1024; }
static_assert(row_cluster_fits(kPlans[3]) && row_cluster_fits(kPlans[4]), "a multiprocessor's shared memory, 1 KiB a CTA the system's");
constexpr int kUnitsInRegisters = 2;  // of the four whose sums a thread of its backward keeps; the others' lie behind V
constexpr int cluster_backward_bytes(const Plan& p) {  // both of a row's, and the rest of the sum
  return row_cluster_bytes(p) + p.shared_bytes() * (8 - kUnitsInRegisters) / 4;
}
constexpr int kMostOuter = 256;     // N0 otherwise: 16, 32 .. 256
constexpr int kOuterColumns = 64;   // n' of a CTA of them
constexpr int kOuterWarps = 8;
constexpr int outer_shared_bytes(int outer, bool complex) { return 2 * kOuterColumns * outer * (complex ? 4 : 2); }

struct LongParams {
  Rows u, pre, post, post2, out, out2;
  float* work;            // [batch, channels, N0, 2, M']: real parts, imaginary parts
  const void* matrix;     // 2 N0 x N0 as fragments, or its transpose
  const void* spectrum;   // [channels, N0, M']
  const void* tables;     // those of M', at whole frequencies
  int batch, channels, length, half, correlate;
  int outer, inner;       // N0, M'
  float half_turn;        // 1 / (2 N0 M'), a power of two if N0 is one
};

// The spectrum of a circle of taps: k from 0 on, to whose first the skip is added, k_reverse backwards from the end.
// Float, contiguous; what is absent is null.
struct SpectrumParams {
  const float *k, *k_reverse, *skip;
  int taps, taps_reverse;  // that exist in memory, and
  int used, used_reverse;  // how many of them count
  void* spectrum;
  const void* tables;
};

// Rows on clusters, and where the spectrum of their filters comes from.
struct ClusterParams {
  Rows u, pre, post, post2, out, out2;
  const void* spectrum;   // [channels, 8, M'], or null: of the filter
  SpectrumParams filter;
  const void* tables;     // those of M', at whole frequencies
  int batch, channels, length, half, correlate;
};

// The filter of rows of N0 M' points: its taps to work and to values, and work of sums over the batch back to taps.
struct LongFilterParams {
  const float *k, *k_reverse, *skip;  // as in SpectrumParams
  int taps, taps_reverse;
  float *dk, *dk_reverse;             // [channels, used], [channels, used_reverse]
  int used, used_reverse;
  float* work;                        // [channels, N0, 2, M']
  void* spectrum;                     // [channels, N0, M']
  const void* matrix;                 // 2 N0 x 2 N0 as fragments, or its transpose
  const void* tables;                 // those of M', at whole frequencies
  int batch, channels;                // a batch of 1
  int outer, inner;
  float half_turn;                    // as in LongParams
};

// Of every channel `shares` parts of the batch, each summed by a CTA; `cluster` of these add their sums up. Their number
// is a multiple of it, and groups are shares / cluster.
//   sums over the batch of g = post dy correlated with v = pre u, for taps of lag 0.. and of lag -1..;
//   du = pre w and dpre = u w, where w is g correlated with the taps; dpost = dy conv(v). Absent tensors are null
struct BackwardParams {
  Rows u, pre, dy, post, du, dpre, dpost;
  float *dk, *dk_reverse;  // [groups, channels, used], [groups, channels, used_reverse]
  int used, used_reverse;
  const void* spectrum;    // [channels, points], where du, dpre or dpost is there; on clusters the
  SpectrumParams filter;   // taps that it is made of
  void* scratch;           // [shares, channels, 2, points] complex, where registers do not hold the spectra
  const void* tables;
  int half;
  int batch, channels, length, shares, cluster;
};

// The same of the inner rows of long ones: work of v and of g, which become that of conv(v) and of w where these are
// wanted, and that of the sums.
struct LongBackwardParams {
  float *v_work, *g_work;  // [batch, channels, N0, 2, M']
  float* sums;             // [groups, channels, N0, 2, M']
  const void* spectrum;    // [channels, N0, M']
  void* scratch;           // [shares, channels, N0, 2, M'] complex
  const void* tables;      // those of M', at whole frequencies
  int wants_v, wants_g;    // conv(v), w
  int batch, rows, shares, cluster;  // rows: channels * N0
  float scale;             // 1 / (N0 M')
};

}  // namespace tkpy::fft_conv
