// cvt (PTX ISA 9.7.9.22): every pair of types through one exact decomposition and one rounding; the commonest pairs have
// vectorised forms.
#include "numeric.h"

namespace tkpy::emulator::TK_ISA {
namespace {

// ---- fast -------------------------------------------------------------------------------------------------------------

template <class From, class To>  // integer to integer: truncate or extend; extended to the register by its own sign
void int_to_int(Exec& x, const Op& op, u32 mask) {
  const Storage<From>* a = x.row<Storage<From>>(op.s[0]);
  each(x.row<Storage<To>>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    return static_cast<Storage<To>>(static_cast<std::make_unsigned_t<To>>(static_cast<To>(static_cast<From>(a[i]))));
  });
}
void s32_to_f32(Exec& x, const Op& op, u32 mask) {
  const i32* a = x.row<i32>(op.s[0]);
  each(x.row<float>(op.d[0]), mask, [=](u32 i) TK_INLINE { return static_cast<float>(a[i]); });
}
void f16_to_f32(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return canonical(half_to_float(a[i] & 0xffff)); });
}
void bf16_to_f32(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return a[i] << 16; });
}
void f32_to_f16(Exec& x, const Op& op, u32 mask) {
  const float* a = x.row<float>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return float_to_half(a[i]); });
}
void f32_to_bf16(Exec& x, const Op& op, u32 mask) {
  const float* a = x.row<float>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return float_to_bfloat(a[i]); });
}
// Packs: the first source is the high half.
void f32_to_f16x2(Exec& x, const Op& op, u32 mask) {
  const float* a = x.row<float>(op.s[0]);
  const float* b = x.row<float>(op.s[1]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return float_to_half(a[i]) << 16 | float_to_half(b[i]); });
}
void f32_to_bf16x2(Exec& x, const Op& op, u32 mask) {
  const float* a = x.row<float>(op.s[0]);
  const float* b = x.row<float>(op.s[1]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return float_to_bfloat(a[i]) << 16 | float_to_bfloat(b[i]); });
}
void f32_to_f64(Exec& x, const Op& op, u32 mask) {
  const float* a = x.row<float>(op.s[0]);
  each(x.row<double>(op.d[0]), mask, [=](u32 i) TK_INLINE { return static_cast<double>(a[i]); });
}

// ---- general ----------------------------------------------------------------------------------------------------------

const Format* format_of(Type type) {
  switch (type) {
    case Type::f16: return &kF16;
    case Type::bf16: return &kBf16;
    case Type::f32: return &kF32;
    case Type::f64: return &kF64;
    case Type::tf32: return &kTf32;
    case Type::e4m3:
    case Type::e4m3x2: return &kE4m3;
    case Type::e5m2:
    case Type::e5m2x2: return &kE5m2;
    default: return nullptr;
  }
}

double float_value(u64 bits, Type type) {
  switch (type) {
    case Type::f16: return half_to_float(bits & 0xffff);
    case Type::bf16: return bfloat_to_float(bits & 0xffff);
    case Type::f32:
    case Type::tf32: return std::bit_cast<float>(static_cast<u32>(bits));
    case Type::f64: return std::bit_cast<double>(bits);
    case Type::e4m3: return e4m3_to_double(static_cast<u32>(bits) & 0xff);
    case Type::e5m2: return e5m2_to_double(static_cast<u32>(bits) & 0xff);
    default: return 0;
  }
}

Exact source_value(u64 bits, Type type, u32 flags) {
  switch (type) {
    case Type::s8: return exact(i64{static_cast<i8>(bits)});
    case Type::s16: return exact(i64{static_cast<i16>(bits)});
    case Type::s32: return exact(i64{static_cast<i32>(bits)});
    case Type::s64: return exact(static_cast<i64>(bits));
    case Type::u8: return exact(bits & 0xff);
    case Type::u16: return exact(bits & 0xffff);
    case Type::u32: return exact(bits & 0xffffffffu);
    case Type::u64: return exact(bits);
    default: break;
  }
  if ((flags & kFtz) && type == Type::f32) return exact(double{flush(std::bit_cast<float>(static_cast<u32>(bits)))});
  return exact(float_value(bits, type));
}

// To an integer of `bits` bits. NaN gives 0, or the top bit when the source is f64 or the result 64 bits wide; everything
// out of range clamps (PTX ISA 9.7.9.22).
u64 to_integer(const Exact& v, Type to, Type from, u32 mode) {
  const u32 bits = type_bits(to);
  const u64 ones = bits == 64 ? ~u64{0} : (u64{1} << bits) - 1;
  if (v.kind == Exact::nan) return from == Type::f64 || bits == 64 ? u64{1} << (bits - 1) : 0;
  const bool sign = is_signed_int(to);
  const u64 limit = !sign ? (v.sign ? 0 : ones) : (ones >> 1) + v.sign;  // largest magnitude on this side
  u64 magnitude;
  if (v.kind == Exact::infinite) magnitude = limit;
  else if (v.m == 0) magnitude = 0;
  else if (v.e > 0 && 63 - std::countl_zero(v.m) + v.e >= 64) magnitude = limit;
  else magnitude = std::min(shift_round(v.m, -v.e, mode, v.sign, v.sticky), limit);
  return (v.sign ? 0 - magnitude : magnitude) & ones;
}

double round_integral(double v, u32 mode) {
  switch (mode) {
    case kRz: return std::trunc(v);
    case kRm: return std::floor(v);
    case kRp: return std::ceil(v);
    default: return std::nearbyint(v);
  }
}

// Op::a rounding, Op::b AluFlag, Op::c Type from, Op::e Type to, Op::f bit 0 integral, bit 1 satfinite.
u64 convert(const Op& op, u64 bits) {
  const Type from = static_cast<Type>(op.c), to = static_cast<Type>(op.e);
  Exact v = source_value(bits, from, op.b);
  const Format* format = format_of(to);
  if (!format) {
    if (!is_int(from)) return to_integer(v, to, from, op.a);
    if (!(op.b & kSat)) return bits;
    return to_integer(v, to, from, kRz);
  }
  if (is_float(from) && (op.f & 1)) v = exact(round_integral(float_value(bits, from), op.a));
  if (op.b & kSat) {  // to [0, 1], NaN to +0
    if (v.kind == Exact::nan || v.sign) v = Exact{};
    else if (v.kind == Exact::infinite || (v.m && 63 - std::countl_zero(v.m) + v.e >= 0)) v = exact(1.0);
  }
  if ((op.b & kRelu) && v.sign && v.kind != Exact::nan) v = Exact{};
  u64 r = round_bits(v, *format, op.a, op.f & 2);
  if ((op.b & kFtz) && to == Type::f32 && (r & 0x7f800000u) == 0) r &= 0x80000000u;
  return r;
}

template <class From, class To>
void general(Exec& x, const Op& op, u32 mask) {
  const From* a = x.row<From>(op.s[0]);
  To* d = x.row<To>(op.d[0]);
  each_active(mask, [&](u32 i) {
    u64 r = convert(op, a[i]);
    const Type to = static_cast<Type>(op.e);
    if (sizeof(To) == 4) {
      const u32 bits = type_bits(to);
      if (bits < 32) r &= (u64{1} << bits) - 1;
    }
    d[i] = static_cast<To>(r);
  });
}

// A narrow integer result held in a wider register is extended by its own sign (PTX ISA 9.4.1). Op::s[4]: register bits.
template <class S>
void extend_result(Exec& x, const Op& op, u32 mask) {
  S* d = x.row<S>(op.d[0]);
  const S* a = x.row<S>(op.s[0]);
  const u32 shift = 8 * sizeof(S) - type_bits(static_cast<Type>(op.e));
  const bool sign = is_signed_int(static_cast<Type>(op.e));
  const u32 reg = op.f;  // bits of the register
  const S keep = reg >= 8 * sizeof(S) ? ~S(0) : (S(1) << reg) - 1;
  each(d, mask, [=](u32 i) TK_INLINE {
    const S up = static_cast<S>(a[i] << shift);
    return static_cast<S>((sign ? static_cast<S>(static_cast<std::make_signed_t<S>>(up) >> shift) : up >> shift) & keep);
  });
}

// Two results in one register. Op::e: the element type; Op::c: source type, which may itself be a pair.
void convert_pack(Exec& x, const Op& op, u32 mask) {
  const Type from = static_cast<Type>(op.c);
  const bool pair = from == Type::f16x2 || from == Type::e4m3x2 || from == Type::e5m2x2 || from == Type::bf16x2;
  Op part = op;
  if (from == Type::f16x2) part.c = static_cast<u8>(Type::f16);
  if (from == Type::bf16x2) part.c = static_cast<u8>(Type::bf16);
  if (from == Type::e4m3x2) part.c = static_cast<u8>(Type::e4m3);
  if (from == Type::e5m2x2) part.c = static_cast<u8>(Type::e5m2);
  const u32 from_bits = type_bits(static_cast<Type>(part.c));
  const u32 to_bits = type_bits(static_cast<Type>(op.e));
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  u32* d = x.row<u32>(op.d[0]);
  each_active(mask, [&](u32 i) {
    const u64 hi = pair ? convert(part, u64{a[i]} >> from_bits) : convert(part, a[i]);
    const u64 lo = pair ? convert(part, a[i] & ((u64{1} << from_bits) - 1)) : convert(part, b[i]);
    d[i] = static_cast<u32>(hi << to_bits | lo);
  });
}

// cvt.pack (PTX ISA 9.7.9.23): two integers, clamped, above them the low bits of a third.
void pack_integers(Exec& x, const Op& op, u32 mask) {
  const u32 *a = x.row<u32>(op.s[0]), *b = x.row<u32>(op.s[1]), *c = x.row<u32>(op.s[op.c ? 2 : 0]);
  const u32 bits = op.a, field = (1u << bits) - 1;
  const i32 top = static_cast<i32>(op.b ? field >> 1 : field), bottom = op.b ? -top - 1 : 0;
  auto clamped = [=](u32 v) TK_INLINE { return static_cast<u32>(std::clamp(static_cast<i32>(v), bottom, top)) & field; };
  const bool third = op.c;
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 low = clamped(a[i]) << bits | clamped(b[i]);
    return third ? low | c[i] << (2 * bits) : low;
  });
}

template <class From>
ExecFn pick_int_to(Type to) {
  switch (to) {
    case Type::u8:
      return int_to_int<From, u8>;
    case Type::s8: return int_to_int<From, i8>;
    case Type::u16: return int_to_int<From, u16>;
    case Type::s16: return int_to_int<From, i16>;
    case Type::u32: return int_to_int<From, u32>;
    case Type::s32: return int_to_int<From, i32>;
    case Type::u64: return int_to_int<From, u64>;
    case Type::s64: return int_to_int<From, i64>;
    default: return nullptr;
  }
}

ExecFn pick_fast(const AluKey& k) {
  if (k.flags || k.integral || k.satfinite) return nullptr;
  if (is_int(k.from) && is_int(k.type)) {
    switch (k.from) {
      case Type::u8: return pick_int_to<u8>(k.type);
      case Type::s8: return pick_int_to<i8>(k.type);
      case Type::u16: return pick_int_to<u16>(k.type);
      case Type::s16: return pick_int_to<i16>(k.type);
      case Type::u32: return pick_int_to<u32>(k.type);
      case Type::s32: return pick_int_to<i32>(k.type);
      case Type::u64: return pick_int_to<u64>(k.type);
      default: return pick_int_to<i64>(k.type);
    }
  }
  if (k.from == Type::f16 && k.type == Type::f32) return f16_to_f32;
  if (k.from == Type::bf16 && k.type == Type::f32) return bf16_to_f32;
  if (k.from == Type::f32 && k.type == Type::f64) return f32_to_f64;
  if (k.round != kRn) return nullptr;
  if (k.from == Type::s32 && k.type == Type::f32) return s32_to_f32;
  if (k.from == Type::f32 && k.type == Type::f16) return f32_to_f16;
  if (k.from == Type::f32 && k.type == Type::bf16) return f32_to_bf16;
  return nullptr;
}

}  // namespace

ExecFn pick_convert(const AluKey& k) {
  if (k.op == Alu::szext) return type_bits(k.from) == 64 ? extend_result<u64> : extend_result<u32>;
  if (k.op == Alu::cvt_pack) {
    if (k.from == Type::f32 && k.round == kRn && !k.flags && !k.satfinite) {
      if (k.type == Type::f16) return f32_to_f16x2;
      if (k.type == Type::bf16) return f32_to_bf16x2;
    }
    return convert_pack;
  }
  if (k.op == Alu::cvt_pack_integers) return pack_integers;
  if (ExecFn fast = pick_fast(k)) return fast;
  const bool a = type_bits(k.from) == 64, d = type_bits(k.type) == 64;
  return a ? (d ? general<u64, u64> : general<u64, u32>) : (d ? general<u32, u64> : general<u32, u32>);
}

}  // namespace tkpy::emulator::TK_ISA

#include "lanes_end.h"
