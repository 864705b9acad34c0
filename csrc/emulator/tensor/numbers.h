// Conversions between fp64/fp32 and the narrow formats of the tensor cores: f16, bf16, tf32, e4m3, e5m2.
//
// Narrowing rounds the exact value once, so an f32 (which a double holds exactly) and an f64 source share one function.
// Rounding, .satfinite, .relu and the NaN results are those of PTX ISA 9.7.9.21 "cvt". Widening is exact.
#pragma once

#include <array>
#include <bit>

#include "../common.h"

namespace tkpy::emulator::tensor {

// rna: to nearest, ties away from zero (cvt.rna.tf32.f32).
enum class Round : u8 { rn, rna, rz, rm, rp };

struct Format {
  u32 exponent_bits, mantissa_bits;
  u32 largest;   // encoding of the largest finite value
  u32 infinity;  // encoding of infinity; for e4m3, which has none, its NaN
  u32 nan;       // the NaN that cvt writes
};

inline constexpr Format kF16{5, 10, 0x7bff, 0x7c00, 0x7fff};
inline constexpr Format kBf16{8, 7, 0x7f7f, 0x7f80, 0x7fff};
inline constexpr Format kTf32{8, 10, 0x3fbff, 0x3fc00, 0x3ffff};  // without the 13 ignored low bits of its register
inline constexpr Format kE4m3{4, 3, 0x7e, 0x7f, 0x7f};
inline constexpr Format kE5m2{5, 2, 0x7b, 0x7c, 0x7f};

namespace detail {

constexpr bool rounds_up(Round mode, bool negative, bool odd, u64 rest, u64 half) {
  switch (mode) {
    case Round::rn: return rest > half || (rest == half && odd);
    case Round::rna: return rest >= half;
    case Round::rz: return false;
    case Round::rm: return negative && rest != 0;
    case Round::rp: return !negative && rest != 0;
  }
  return false;
}

// Magnitude of a finite non-zero double, rounded; may exceed `largest`, never wraps.
template <Format F>
constexpr u32 round_magnitude(u64 magnitude, bool negative, Round mode) {
  constexpr i32 kBias = (1 << (F.exponent_bits - 1)) - 1;
  constexpr i32 kLeast = 1 - kBias;  // exponent of the smallest normal number
  const i32 field = static_cast<i32>(magnitude >> 52);
  u64 significand = magnitude & ((u64{1} << 52) - 1);
  if (field) significand |= u64{1} << 52;
  const i32 exponent = (field ? field : 1) - 1023;
  if (exponent > kBias + 1) return F.infinity + 1;
  i32 shift = 52 - static_cast<i32>(F.mantissa_bits);
  if (exponent < kLeast) shift += kLeast - exponent;
  if (shift > 62) shift = 62;  // everything is below half of the last place: only "non-zero" matters
  const u64 keep = significand >> shift;
  const u64 rest = significand & ((u64{1} << shift) - 1);
  const bool up = rounds_up(mode, negative, keep & 1, rest, u64{1} << (shift - 1));
  // A carry out of the mantissa lands in the exponent field, which is what rounding to the next binade means.
  u64 bits = keep + up;
  if (exponent >= kLeast) bits += static_cast<u64>(exponent - kLeast) << F.mantissa_bits;
  return static_cast<u32>(bits);
}

constexpr bool overflow_saturates(Round mode, bool negative) {
  return mode == Round::rz || (mode == Round::rm && !negative) || (mode == Round::rp && negative);
}

}  // namespace detail

template <Format F>
constexpr u32 narrow(double value, Round mode = Round::rn, bool satfinite = false, bool relu = false) {
  const u64 bits = std::bit_cast<u64>(value);
  const bool negative = bits >> 63;
  const u64 magnitude = bits & ~(u64{1} << 63);
  const u32 sign = static_cast<u32>(negative) << (F.exponent_bits + F.mantissa_bits);
  constexpr u64 kInfinity = u64{0x7ff} << 52;
  if (magnitude > kInfinity) return F.nan;
  if (relu && negative) return 0;
  if (magnitude == 0) return sign;
  if (magnitude == kInfinity) return sign | (satfinite ? F.largest : F.infinity);
  const u32 rounded = detail::round_magnitude<F>(magnitude, negative, mode);
  if (rounded <= F.largest) return sign | rounded;
  const bool finite = satfinite || detail::overflow_saturates(mode, negative);
  return sign | (finite ? F.largest : F.infinity);
}

template <Format F>
constexpr float widen(u32 bits) {
  constexpr i32 kBias = (1 << (F.exponent_bits - 1)) - 1;
  const u32 mantissa = bits & ((1u << F.mantissa_bits) - 1);
  const u32 field = bits >> F.mantissa_bits & ((1u << F.exponent_bits) - 1);
  const u32 sign = (bits >> (F.exponent_bits + F.mantissa_bits) & 1) << 31;
  const u32 magnitude = field << F.mantissa_bits | mantissa;
  if (magnitude > F.largest) {
    const bool infinite = magnitude == F.infinity && F.infinity != F.nan;
    const u32 payload = infinite ? 0 : 1u << 22 | mantissa << (23 - F.mantissa_bits);
    return std::bit_cast<float>(sign | 0x7f800000u | payload);
  }
  if constexpr (F.exponent_bits == 8) return std::bit_cast<float>(sign | magnitude << (23 - F.mantissa_bits));
  if (field == 0) {
    float step = 1.0f;
    for (i32 i = 0; i < kBias - 1 + static_cast<i32>(F.mantissa_bits); ++i) step *= 0.5f;
    const float value = static_cast<float>(mantissa) * step;
    return sign ? -value : value;
  }
  const u32 exponent = static_cast<u32>(static_cast<i32>(field) - kBias + 127);
  return std::bit_cast<float>(sign | exponent << 23 | mantissa << (23 - F.mantissa_bits));
}

extern const std::array<float, 256> kE4m3Values;
extern const std::array<float, 256> kE5m2Values;

inline float bf16_to_f32(u16 bits) { return std::bit_cast<float>(u32{bits} << 16); }

inline float f16_to_f32(u16 bits) {
  const u32 sign = (bits & 0x8000u) << 16;
  const u32 magnitude = bits & 0x7fffu;
  // Subnormals by an integer conversion: it does not depend on the host thread's denormals-are-zero mode.
  const u32 subnormal = std::bit_cast<u32>(static_cast<float>(static_cast<i32>(magnitude)) * 0x1p-24f);
  const u32 normal = (magnitude << 13) + (112u << 23);
  const u32 special = magnitude << 13 | 0x7f800000u;
  return std::bit_cast<float>(sign | (magnitude < 0x400 ? subnormal : magnitude < 0x7c00 ? normal : special));
}

// A tf32 register is an f32 whose low 13 bits the tensor cores ignore (PTX ISA 5.2.3).
inline float tf32_to_f32(u32 bits) { return std::bit_cast<float>(bits & 0xffffe000u); }
inline float e4m3_to_f32(u8 bits) { return kE4m3Values[bits]; }
inline float e5m2_to_f32(u8 bits) { return kE5m2Values[bits]; }

// The commonest conversions, to nearest even, without the general path.
inline u16 f32_to_bf16(float value) {
  const u32 bits = std::bit_cast<u32>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline u16 f32_to_f16(float value) {
  const u32 bits = std::bit_cast<u32>(value);
  const u32 magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  // Below 2^-14, adding 0.5 lets the host's own addition round to a multiple of 2^-24.
  const u32 subnormal = std::bit_cast<u32>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const u32 normal = (magnitude + 0xfffu + (magnitude >> 13 & 1) - 0x38000000u) >> 13;  // a carry makes infinity
  const u32 finite = magnitude < 0x38800000u ? subnormal : normal;
  const u32 rounded = sign | (magnitude < 0x47800000u ? finite : 0x7c00u);
  return static_cast<u16>(magnitude > 0x7f800000u ? 0x7fffu : rounded);
}

// The f32-shaped register that cvt.{rn,rna,rz}.tf32.f32 writes; its NaN is 0x7fffffff.
inline u32 f32_to_tf32(float value, Round mode = Round::rna, bool satfinite = false, bool relu = false) {
  if (value != value) return 0x7fffffffu;
  return narrow<kTf32>(value, mode, satfinite, relu) << 13;
}

// `count` elements of one of the tensor cores' operand types, packed from the lowest bit up, as floats. Integer types
// give their values, exact in a float; b1 is not a number and is not accepted.
void widen_packed(Type type, const u8* bytes, u32 count, float* out);

}  // namespace tkpy::emulator::tensor
