#include "gemm.h"

#include <algorithm>
#include <bit>
#include <cmath>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define TKPY_TENSOR_AVX2 1
#endif

namespace tkpy::emulator::tensor {

void pack_a(u32 rows, u32 k, const float* a, float* packed) {
  for (u32 row = 0; row < rows; row += 2) {
    const float* even = a + std::size_t{row} * k;
    const float* odd = even + k;
    float* to = packed + std::size_t{row / 2} * k * 8;
    for (u32 i = 0; i < k; ++i) {
      for (u32 t = 0; t < 4; ++t) {
        to[i * 8 + t] = even[i];
        to[i * 8 + 4 + t] = odd[i];
      }
    }
  }
}

void pack_b(u32 n, u32 k, const float* b, float* packed) {
  for (u32 col = 0; col < n; ++col) {
    const float* from = b + std::size_t{col} * k;
    float* to = packed + std::size_t{col / 8 * 2 + col % 2} * k * 4 + col % 8 / 2;
    for (u32 i = 0; i < k; ++i) to[i * 4] = from[i];
  }
}

namespace {

// One group of eight lanes against every column; `d` is the warp's accumulators, `half` the row half, `q` the octet.
void octet_plain(u32 n, u32 k, const float* a, const float* b, float* const* d, u32 half, u32 q) {
  for (u32 column = 0; column < n / 4; ++column) {  // column = 2 j + parity
    float* acc = d[column / 2 * 4 + half * 2 + column % 2] + 8 * q;
    const float* bs = b + std::size_t{column} * k * 4;
    for (u32 lane = 0; lane < 8; ++lane) {
      float sum;
      std::memcpy(&sum, acc + lane, sizeof sum);  // the caller's registers may be declared as integers
      for (u32 i = 0; i < k; ++i) sum = std::fma(a[i * 8 + lane], bs[i * 4 + lane % 4], sum);
      std::memcpy(acc + lane, &sum, sizeof sum);
    }
  }
}

#ifdef TKPY_TENSOR_AVX2
template <u32 columns>
__attribute__((target("avx2,fma"))) inline void octet_block(u32 k, const float* a, const float* b, float* const* d,
                                                            u32 first, u32 half, u32 q) {
  __m256 acc[columns];
  for (u32 c = 0; c < columns; ++c) {
    acc[c] = _mm256_loadu_ps(d[(first + c) / 2 * 4 + half * 2 + c % 2] + 8 * q);
  }
  const float* bs = b + std::size_t{first} * k * 4;
  for (u32 i = 0; i < k; ++i) {
    const __m256 row = _mm256_loadu_ps(a + i * 8);
#pragma GCC unroll 8
    for (u32 c = 0; c < columns; ++c) {
      const __m256 column = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(bs + (c * k + i) * 4));
      acc[c] = _mm256_fmadd_ps(row, column, acc[c]);
    }
  }
  for (u32 c = 0; c < columns; ++c) {
    _mm256_storeu_ps(d[(first + c) / 2 * 4 + half * 2 + c % 2] + 8 * q, acc[c]);
  }
}

__attribute__((target("avx2,fma"))) void octet_avx2(u32 n, u32 k, const float* a, const float* b, float* const* d,
                                                    u32 half, u32 q) {
  u32 column = 0;
  for (; column + 8 <= n / 4; column += 8) octet_block<8>(k, a, b, d, column, half, q);
  for (; column < n / 4; column += 2) octet_block<2>(k, a, b, d, column, half, q);
}
#endif

constexpr u32 kMostTerms = 32, kInfinite = 0x7f800000;

// Toward zero, to the 24 bits of a float.
inline float cut_to_float(i32 sum) {
  const i32 magnitude = sum < 0 ? -sum : sum;
  const float nearest = static_cast<float>(magnitude);
  const float cut = std::bit_cast<float>(std::bit_cast<u32>(nearest) - (static_cast<i32>(nearest) > magnitude));
  return sum < 0 ? -cut : cut;
}

// The same lanes with Hopper's sums. `kept` + 1 bits of a term, and up to 33 terms of 14 or 17 of 26: a sum fits 31.
__attribute__((always_inline)) inline void octet_cut(u32 n, u32 k, u32 kept, const float* a, const float* b, float* const* d,
                                                     u32 half, u32 q) {
  for (u32 column = 0; column < n / 4; ++column) {
    float* acc = d[column / 2 * 4 + half * 2 + column % 2] + 8 * q;
    const float* bs = b + std::size_t{column} * k * 4;
    alignas(32) float terms[kMostTerms + 1][8], scale[8], back[8], result[8];
    alignas(32) u32 largest[8];
    alignas(32) i32 sum[8] = {};
    std::memcpy(terms[k], acc, sizeof terms[k]);
    for (u32 lane = 0; lane < 8; ++lane) largest[lane] = std::bit_cast<u32>(terms[k][lane]) & 0x7fffffff;
    for (u32 i = 0; i < k; ++i)
      for (u32 lane = 0; lane < 8; ++lane) {
        terms[i][lane] = a[i * 8 + lane] * bs[i * 4 + lane % 4];
        largest[lane] = std::max(largest[lane], std::bit_cast<u32>(terms[i][lane]) & 0x7fffffff);
      }
    for (u32 lane = 0; lane < 8; ++lane) {
      const u32 exponent = std::max(std::min(largest[lane], kInfinite - 1) >> 23, kept + 1);
      scale[lane] = std::bit_cast<float>((254 + kept - exponent) << 23);
      back[lane] = std::bit_cast<float>((exponent - kept) << 23);
    }
    for (u32 i = 0; i <= k; ++i)
      for (u32 lane = 0; lane < 8; ++lane)
        sum[lane] += largest[lane] < kInfinite ? static_cast<i32>(terms[i][lane] * scale[lane]) : 0;
    for (u32 lane = 0; lane < 8; ++lane) result[lane] = cut_to_float(sum[lane]) * back[lane];
    for (u32 lane = 0; lane < 8; ++lane) {
      if (largest[lane] < kInfinite) continue;
      result[lane] = terms[k][lane];
      for (u32 i = 0; i < k; ++i) result[lane] += terms[i][lane];
    }
    std::memcpy(acc, result, sizeof result);
  }
}

using Cut = void (*)(u32, u32, u32, const float*, const float*, float* const*, u32, u32);
void cut_plain(u32 n, u32 k, u32 kept, const float* a, const float* b, float* const* d, u32 half, u32 q) {
  octet_cut(n, k, kept, a, b, d, half, q);
}
#ifdef TKPY_TENSOR_AVX2
__attribute__((target("avx2,fma"))) void cut_avx2(u32 n, u32 k, u32 kept, const float* a, const float* b, float* const* d,
                                                  u32 half, u32 q) {
  octet_cut(n, k, kept, a, b, d, half, q);
}
#endif

using Octet = void (*)(u32, u32, const float*, const float*, float* const*, u32, u32);

Octet choose() {
#ifdef TKPY_TENSOR_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return octet_avx2;
#endif
  return octet_plain;
}

Cut choose_cut() {
#ifdef TKPY_TENSOR_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return cut_avx2;
#endif
  return cut_plain;
}

template <class F>
void run(F octet, u32 warps, u32 n, u32 k, const float* packed_a, const float* packed_b, float* const* d) {
  for (u32 warp = 0; warp < warps; ++warp) {
    for (u32 part = 0; part < 8; ++part) {
      const float* a = packed_a + (std::size_t{warp} * 8 + part) * k * 8;
      octet(n, k, a, packed_b, d + std::size_t{warp} * (n / 2), part / 4, part % 4);
    }
  }
}

}  // namespace

void fragment_gemm(u32 warps, u32 n, u32 k, const float* packed_a, const float* packed_b, float* const* d, u32 kept) {
  if (kept) {
    static const Cut cut = choose_cut();
    const auto octet = [&](u32 columns, u32 depth, const float* a, const float* b, float* const* to, u32 half, u32 q) {
      cut(columns, depth, kept, a, b, to, half, q);
    };
    return run(octet, warps, n, k, packed_a, packed_b, d);
  }
  static const Octet octet = choose();
  run(octet, warps, n, k, packed_a, packed_b, d);
}

void fragment_gemm_portable(u32 warps, u32 n, u32 k, const float* packed_a, const float* packed_b, float* const* d) {
  run(octet_plain, warps, n, k, packed_a, packed_b, d);
}

}  // namespace tkpy::emulator::tensor
