// Number formats: exact decomposition, one rounding, encodings. Every narrowing goes through round_bits, so each result is
// rounded once; fast forms of the common conversions follow.
#pragma once

#include "lanes.h"

namespace tkpy::emulator::TK_ISA {
namespace {

constexpr u32 kNan32 = 0x7fffffffu;  // the canonical NaN of single-precision results (PTX ISA 9.7.3)
constexpr u16 kNan16 = 0x7fff;       // of f16 and bf16

struct Format {
  i32 precision;   // bits of significand, the implicit one included
  i32 min_exp;     // exponent of the smallest normal
  i32 bias;
  i32 exp_max;     // largest exponent field of a finite number
  u64 max_finite;  // encoding
  u64 infinity;    // encoding; equal to nan where the format has none
  u64 nan;
  i32 sign_bit;
};
constexpr Format kF16{11, -14, 15, 30, 0x7bff, 0x7c00, kNan16, 15};
constexpr Format kBf16{8, -126, 127, 254, 0x7f7f, 0x7f80, kNan16, 15};
constexpr Format kTf32{11, -126, 127, 254, 0x7f7fe000, 0x7f800000, kNan32, 31};  // shifted left by 13 after encoding
constexpr Format kF32{24, -126, 127, 254, 0x7f7fffff, 0x7f800000, kNan32, 31};
constexpr Format kF64{53, -1022, 1023, 2046, 0x7fefffffffffffffull, 0x7ff0000000000000ull, 0x7fffffffffffffffull, 63};
constexpr Format kE4m3{4, -6, 7, 15, 0x7e, 0x7f, 0x7f, 7};
constexpr Format kE5m2{3, -14, 15, 30, 0x7b, 0x7c, 0x7f, 7};

// An exact value: (-1)^sign * m * 2^e, or a special.
struct Exact {
  enum Kind : u8 { finite, infinite, nan } kind = finite;
  bool sign = false;
  u64 m = 0;
  i32 e = 0;
  bool sticky = false;  // the true magnitude is a little larger than m * 2^e
};

inline Exact exact(double v) {
  const u64 bits = std::bit_cast<u64>(v);
  Exact x;
  x.sign = bits >> 63;
  const i32 field = static_cast<i32>(bits >> 52 & 0x7ff);
  const u64 mantissa = bits & ((u64{1} << 52) - 1);
  if (field == 0x7ff) {
    x.kind = mantissa ? Exact::nan : Exact::infinite;
  } else {
    x.m = field ? mantissa | u64{1} << 52 : mantissa;
    x.e = (field ? field : 1) - 1075;
  }
  return x;
}
inline Exact exact(i64 v) {
  Exact x;
  x.sign = v < 0;
  x.m = v < 0 ? 0 - static_cast<u64>(v) : static_cast<u64>(v);
  return x;
}
inline Exact exact(u64 v) {
  Exact x;
  x.m = v;
  return x;
}

inline bool rounds_up(u32 mode, bool sign, bool odd, bool half, bool rest) {
  switch (mode) {
    case kRn: return half && (rest || odd);
    case kRna: return half;
    case kRm: return sign && (half || rest);
    case kRp: return !sign && (half || rest);
    default: return false;
  }
}

// m >> shift, rounded. A negative shift is exact and must fit.
inline u64 shift_round(u64 m, i32 shift, u32 mode, bool sign, bool sticky) {
  if (shift <= 0) return m << -shift;
  bool half = false, rest = sticky;
  u64 kept = 0;
  if (shift > 64) {
    rest |= m != 0;
  } else {
    const u64 below = shift == 64 ? m : m & ((u64{1} << shift) - 1);
    half = below >> (shift - 1) & 1;
    rest |= (below & ((u64{1} << (shift - 1)) - 1)) != 0;
    kept = shift == 64 ? 0 : m >> shift;
  }
  return kept + rounds_up(mode, sign, kept & 1, half, rest);
}

// Encodes in `f`, rounding once. Overflow: to infinity or the largest finite number, as the mode says; `satfinite` always
// gives the largest finite number (PTX ISA 9.7.9.22, cvt).
inline u64 round_bits(const Exact& x, const Format& f, u32 mode, bool satfinite = false) {
  const u64 sign = static_cast<u64>(x.sign) << f.sign_bit;
  if (x.kind == Exact::nan) return f.nan;
  if (x.kind == Exact::infinite) return sign | (satfinite ? f.max_finite : f.infinity);
  if (x.m == 0) return sign;
  i32 top = 63 - std::countl_zero(x.m) + x.e;                       // exponent of the leading bit
  const i32 q = std::max(top, f.min_exp) - (f.precision - 1);       // exponent of the last place
  // A left shift past 64 bits cannot occur: q <= top, so at most precision bits remain.
  u64 n = shift_round(x.m, q - x.e, mode, x.sign, x.sticky);
  i32 exponent = q + f.precision - 1;
  if (n >> f.precision) n >>= 1, ++exponent;
  u64 bits;
  if (n >> (f.precision - 1)) {
    const i32 field = exponent + f.bias;
    bits = (static_cast<u64>(field) << (f.precision - 1)) + (n - (u64{1} << (f.precision - 1)));
    if (&f == &kTf32) bits <<= 13;
    if (field > f.exp_max || bits > f.max_finite) {
      const bool clamp = satfinite || mode == kRz || (mode == kRm && !x.sign) || (mode == kRp && x.sign);
      bits = clamp ? f.max_finite : f.infinity;
    }
  } else {
    bits = n;
    if (&f == &kTf32) bits <<= 13;
  }
  return sign | bits;
}

TK_INLINE inline float half_to_float(u32 h) {
  const u32 w = h << 16;
  const u32 twice = w + w;
  const float normal = std::bit_cast<float>((twice >> 4) + (0xe0u << 23)) * 0x1.0p-112f;
  const float subnormal = std::bit_cast<float>((twice >> 17) | (126u << 23)) - 0.5f;
  const u32 bits = std::bit_cast<u32>(twice < (1u << 27) ? subnormal : normal);
  return std::bit_cast<float>((w & 0x80000000u) | bits);
}
TK_INLINE inline float bfloat_to_float(u32 h) { return std::bit_cast<float>(h << 16); }

TK_INLINE inline u32 float_to_bfloat(float v) {  // to nearest even
  const u32 bits = std::bit_cast<u32>(v);
  const u32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? kNan16 : rounded;
}
TK_INLINE inline u32 float_to_half(float v) {  // to nearest even
  const u32 bits = std::bit_cast<u32>(v);
  const u32 sign = bits & 0x80000000u;
  float base = (std::fabs(v) * 0x1.0p+112f) * 0x1.0p-110f;
  const u32 twice = bits + bits;
  u32 bias = twice & 0xff000000u;
  bias = bias < 0x71000000u ? 0x71000000u : bias;
  base = std::bit_cast<float>((bias >> 1) + 0x07800000u) + base;
  const u32 out = std::bit_cast<u32>(base);
  const u32 nonsign = (out >> 13 & 0x7c00u) + (out & 0xfffu);
  return sign >> 16 | (twice > 0xff000000u ? 0x7fffu : nonsign);
}
inline u32 canonical_half(u32 h) { return (h & 0x7fffu) > 0x7c00u ? kNan16 : h; }

inline double e4m3_to_double(u32 b) {
  const u32 field = b >> 3 & 15, mantissa = b & 7;
  if ((b & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  const double v = field ? std::ldexp(8.0 + mantissa, static_cast<int>(field) - 10) : std::ldexp(mantissa, -9);
  return b & 0x80 ? -v : v;
}
inline double e5m2_to_double(u32 b) { return half_to_float((b & 0xff) << 8); }

TK_INLINE inline float flush(float v) {  // subnormals become zero of the same sign
  const u32 bits = std::bit_cast<u32>(v);
  return std::bit_cast<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}
TK_INLINE inline u32 canonical(float v) { return v != v ? kNan32 : std::bit_cast<u32>(v); }

// Runs with the host's rounding mode set. `opaque` keeps the compiler from moving arithmetic across the switch.
struct HostRounding {
  explicit HostRounding(u32 mode) : saved(std::fegetround()) {
    static constexpr int kHost[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
    std::fesetround(kHost[mode]);
  }
  ~HostRounding() { std::fesetround(saved); }
  int saved;
};
template <class T>
TK_INLINE inline T opaque(T v) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(v) : : "memory");
#else
  asm volatile("" : "+m"(v) : : "memory");
#endif
  return v;
}

// a*b+c in double, last bit odd when inexact: rounding that once more to a much shorter format is rounding once.
inline double fma_to_odd(double a, double b, double c) {
  const double p = a * b;  // exact for f16 and bf16 operands
  const double s = p + c;
  if (!std::isfinite(s)) return s;
  const double t = s - p;
  const double error = (p - (s - t)) + (c - t);
  if (error == 0) return s;
  u64 bits = std::bit_cast<u64>(s);
  if (bits & 1) return s;
  // Even and inexact: the neighbour on the side of the error is odd.
  const bool away = (error > 0) == (s > 0);
  if (s == 0) return s;
  bits = away ? bits + 1 : bits - 1;
  return std::bit_cast<double>(bits);
}

}  // namespace
}  // namespace tkpy::emulator::TK_ISA
