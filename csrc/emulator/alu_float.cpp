// Floating-point arithmetic: f32, f64, f16, bf16 and the packed pairs (PTX ISA 9.7.3, 9.7.4, 9.7.5).
#include "numeric.h"

namespace tkpy::emulator::TK_ISA {
namespace {

// ---- fast: f32 and f64, to nearest ----------------------------------------------------------------------------------

struct Add { template <class T> static T apply(T a, T b) { return a + b; } };
struct Sub { template <class T> static T apply(T a, T b) { return a - b; } };
struct Mul { template <class T> static T apply(T a, T b) { return a * b; } };
struct Fma { template <class T> static T apply(T a, T b, T c) { return std::fma(a, b, c); } };
struct Div { template <class T> static T apply(T a, T b) { return a / b; } };
struct Sqrt { template <class T> static T apply(T a) { return std::sqrt(a); } };
struct Rcp { template <class T> static T apply(T a) { return T(1) / a; } };
// min and max (PTX ISA 9.7.3.13): a NaN loses against a number, -0 is below +0; .NaN lets it win.
struct Min {
  template <class T> static T apply(T a, T b) {
    const T r = a < b ? a : b < a ? b : std::signbit(a) ? a : b;
    return a != a ? b : b != b ? a : r;
  }
};
struct Max {
  template <class T> static T apply(T a, T b) {
    const T r = a > b ? a : b > a ? b : std::signbit(a) ? b : a;
    return a != a ? b : b != b ? a : r;
  }
};

template <bool ftz>
TK_INLINE inline float in32(u32 bits) {
  const float v = std::bit_cast<float>(bits);
  return ftz ? flush(v) : v;
}
template <bool ftz>
TK_INLINE inline u32 out32(float v) { return canonical(ftz ? flush(v) : v); }

template <class F, bool ftz>
void unary32(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return out32<ftz>(F::apply(in32<ftz>(a[i]))); });
}
template <class F, bool ftz>
void binary32(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  each(x.row<u32>(op.d[0]), mask,
       [=](u32 i) TK_INLINE { return out32<ftz>(F::apply(in32<ftz>(a[i]), in32<ftz>(b[i]))); });
}
template <bool ftz>
void fma32(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    return out32<ftz>(__builtin_fmaf(in32<ftz>(a[i]), in32<ftz>(b[i]), in32<ftz>(c[i])));
  });
}
void fma64(Exec& x, const Op& op, u32 mask) {
  const double* a = x.row<double>(op.s[0]);
  const double* b = x.row<double>(op.s[1]);
  const double* c = x.row<double>(op.s[2]);
  each(x.row<double>(op.d[0]), mask, [=](u32 i) TK_INLINE { return __builtin_fma(a[i], b[i], c[i]); });
}

// abs, neg and copysign work on the bits; .ftz also flushes.
template <bool negate, bool ftz>
void sign32(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 v = std::bit_cast<u32>(in32<ftz>(a[i]));
    return negate ? v ^ 0x80000000u : v & 0x7fffffffu;
  });
}
template <bool negate>
void sign64(Exec& x, const Op& op, u32 mask) {
  const u64* a = x.row<u64>(op.s[0]);
  constexpr u64 top = u64{1} << 63;
  each(x.row<u64>(op.d[0]), mask, [=](u32 i) TK_INLINE { return negate ? a[i] ^ top : a[i] & ~top; });
}
template <bool negate>
void sign16(Exec& x, const Op& op, u32 mask) {  // Op::e: packed
  const u32* a = x.row<u32>(op.s[0]);
  const u32 top = op.e ? 0x80008000u : 0x8000u;
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return negate ? a[i] ^ top : a[i] & ~top; });
}
template <class T>  // d takes a's sign and b's magnitude (PTX ISA 9.7.3.2)
void copysign(Exec& x, const Op& op, u32 mask) {
  const T* a = x.row<T>(op.s[0]);
  const T* b = x.row<T>(op.s[1]);
  constexpr T top = T(1) << (8 * sizeof(T) - 1);
  each(x.row<T>(op.d[0]), mask, [=](u32 i) TK_INLINE { return (a[i] & top) | (b[i] & ~top); });
}

// testp: Op::a: 0 finite 1 infinite 2 number 3 notanumber 4 normal 5 subnormal
bool test_property(double v, bool subnormal, u32 what) {
  switch (what) {
    case 0: return std::isfinite(v);
    case 1: return std::isinf(v);
    case 2: return !std::isnan(v);
    case 3: return std::isnan(v);
    case 4: return std::isfinite(v) && !subnormal && v != 0;
    default: return subnormal;
  }
}
template <class T>
void testp(Exec& x, const Op& op, u32 mask) {
  const Storage<T>* a = x.row<Storage<T>>(op.s[0]);
  u32 result = 0;
  each_active(mask, [&](u32 i) {
    const T v = unpack<T>(a[i]);
    result |= static_cast<u32>(test_property(v, std::fpclassify(v) == FP_SUBNORMAL, op.a)) << i;
  });
  u32& d = x.preds[op.d[0]];
  d = (d & ~mask) | result;
}

// ---- general: any rounding, .sat, .relu, every format ---------------------------------------------------------------

// Op::b: AluFlag; Op::a: rounding.
template <class T>
T saturate(T v) { return v > T(0) ? (v < T(1) ? v : T(1)) : T(0); }  // NaN becomes +0

// f32 and f64 with a rounding mode: the host's own arithmetic under that mode.
template <class T, class F, u32 arity>
void rounded(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[arity > 1 ? 1 : 0]);
  const S* c = x.row<S>(op.s[arity > 2 ? 2 : 0]);
  S* d = x.row<S>(op.d[0]);
  const u32 flags = op.b;
  auto input = [&](S bits) {
    T v = std::bit_cast<T>(bits);
    if constexpr (sizeof(T) == 4) if (flags & kFtz) v = flush(v);
    return v;
  };
  const HostRounding rounding(op.a);
  each_active(mask, [&](u32 i) {
    T r;
    if constexpr (arity == 1) r = opaque(F::apply(opaque(input(a[i]))));
    else if constexpr (arity == 2) r = opaque(F::apply(opaque(input(a[i])), opaque(input(b[i]))));
    else r = opaque(F::apply(opaque(input(a[i])), opaque(input(b[i])), opaque(input(c[i]))));
    if constexpr (sizeof(T) == 4) if (flags & kFtz) r = flush(r);
    if (flags & kSat) r = saturate(r);
    if constexpr (sizeof(T) == 4) d[i] = canonical(r);
    else d[i] = std::bit_cast<S>(r);
  });
}

// min and max (PTX ISA 9.7.3.12): .xorsign.abs compares magnitudes and gives the result the product's sign.
template <class T, class F>
T extremum_of(T p, T q, u32 flags) {
  const bool sign = std::signbit(p) != std::signbit(q);
  if (flags & kXorSign) p = std::fabs(p), q = std::fabs(q);
  if ((flags & kNan) && (p != p || q != q)) return std::numeric_limits<T>::quiet_NaN();
  const T r = F::apply(p, q);
  return (flags & kXorSign) && r == r ? std::copysign(r, sign ? T(-1) : T(1)) : r;
}
template <class T, class F>
void extremum(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  S* d = x.row<S>(op.d[0]);
  const u32 flags = op.b;
  each_active(mask, [&](u32 i) {
    T p = std::bit_cast<T>(a[i]), q = std::bit_cast<T>(b[i]);
    if constexpr (sizeof(T) == 4) if (flags & kFtz) p = flush(p), q = flush(q);
    const T r = extremum_of<T, F>(p, q, flags);
    if constexpr (sizeof(T) == 4) d[i] = canonical(r);
    else d[i] = std::bit_cast<S>(r);
  });
}

// f16 and bf16, one or two in a register: computed in double and rounded once. Op::c: 1 bf16; Op::e: 1 packed.
struct Small {
  bool bf, packed;
  u32 flags;
  explicit Small(const Op& op) : bf(op.c), packed(op.e), flags(op.b) {}
  double in(u32 bits, u32 part) const {
    const u32 h = flushed(bits >> (16 * part) & 0xffff);
    return bf ? bfloat_to_float(h) : half_to_float(h);
  }
  u32 out(double v) const {
    if (flags & kSat) v = saturate(v);
    if (flags & kRelu) v = v != v ? v : v > 0 ? v : 0.0;
    return flushed(static_cast<u32>(round_bits(exact(v), bf ? kBf16 : kF16, kRn)));
  }
  u32 flushed(u32 h) const { return (flags & kFtz) && (h & (bf ? 0x7f80 : 0x7c00)) == 0 ? h & 0x8000 : h; }
};

// The NaN that a tensor map fills with where a tile leaves its tensor; fma.oob makes it 0.
bool out_of_bounds(u32 bits, u32 part) { return (bits >> (16 * part) & 0xffff) == kNan16; }

template <class F>
void small_extremum(Exec& x, const Op& op, u32 mask) {
  const Small s(op);
  const u32 *a = x.row<u32>(op.s[0]), *b = x.row<u32>(op.s[1]);
  u32* d = x.row<u32>(op.d[0]);
  each_active(mask, [&](u32 i) {
    u32 r = 0;
    for (u32 part = 0; part < 1u + s.packed; ++part)
      r |= s.out(extremum_of<double, F>(s.in(a[i], part), s.in(b[i], part), s.flags)) << (16 * part);
    d[i] = r;
  });
}

template <class F, u32 arity>
void small(Exec& x, const Op& op, u32 mask) {
  const Small s(op);
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[arity > 1 ? 1 : 0]);
  const u32* c = x.row<u32>(op.s[arity > 2 ? 2 : 0]);
  u32* d = x.row<u32>(op.d[0]);
  each_active(mask, [&](u32 i) {
    u32 r = 0;
    for (u32 part = 0; part < 1u + s.packed; ++part) {
      double v;
      if constexpr (arity == 1) v = F::apply(s.in(a[i], part));
      else if constexpr (arity == 2) v = F::apply(s.in(a[i], part), s.in(b[i], part));
      else v = F::apply(s.in(a[i], part), s.in(b[i], part), s.in(c[i], part));
      if (arity == 3 && (s.flags & kOutOfBounds) && (out_of_bounds(a[i], part) || out_of_bounds(b[i], part))) v = 0;
      r |= s.out(v) << (16 * part);
    }
    d[i] = r;
  });
}

// The common packed and single 16-bit operations vectorise: f32 holds every f16 sum and product well enough to round once
// more (24 >= 2 * 11 + 2 bits), and bf16 ones too unless they are subnormal, which the double form covers.
template <class F>
void half_fast(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    return float_to_half(F::apply(half_to_float(a[i] & 0xffff), half_to_float(b[i] & 0xffff)));
  });
}
template <class F>
void half2_fast(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 lo = float_to_half(F::apply(half_to_float(a[i] & 0xffff), half_to_float(b[i] & 0xffff)));
    const u32 hi = float_to_half(F::apply(half_to_float(a[i] >> 16), half_to_float(b[i] >> 16)));
    return lo | hi << 16;
  });
}

struct FmaOdd { static double apply(double a, double b, double c) { return fma_to_odd(a, b, c); } };

// ---- approximations: computed in double and rounded, which gives the nearest number ---------------------------------

// `error`: what the ISA allows hardware to be off by at `a`, whose exact result is r, less half a unit of the last place for the
// rounding; `ulps`, where it counts in those units from the nearest result, their number.
struct Ex2 {
  static constexpr int ulps = 2;
  static double apply(double a) { return std::exp2(a); }
};
struct RcpD {
  static constexpr int ulps = 1;
  static double apply(double a) { return 1.0 / a; }
};
struct Lg2 {
  static double apply(double a) { return std::log2(a); }
  static double error(double a, double r) { return a > 0.5 && a < 2.0 ? 0.875 * 0x1p-22 : 0.75 * 0x1p-22 * r; }
};
struct Sine {
  static double error(double a, double) {
    const double size = std::fabs(a);
    return size < 6.283185 ? 0.6 * 0x1p-20 : size < 314.1592 ? 1.2 * 0x1p-15 : 1.0;
  }
};
struct Sin : Sine { static double apply(double a) { return std::sin(a); } };
struct Cos : Sine { static double apply(double a) { return std::cos(a); } };
struct Tanh {
  static double apply(double a) { return std::tanh(a); }
  static double error(double, double r) { return std::fmin(0.99 * 0x1p-11 * std::fabs(r), 1.0 - std::fabs(r)); }  // never beyond 1
};
struct RsqrtD {
  static double apply(double a) { return 1.0 / std::sqrt(a); }
  static double error(double, double r) { return 0.57 * 0x1p-23 * r; }
};
struct SqrtD {
  static double apply(double a) { return std::sqrt(a); }
  static double error(double, double r) { return 0.5 * 0x1p-23 * r; }
};

// From -1 to 1, the same for the same argument, as hardware's errors are.
double share_of_error(u32 bits) {
  bits = (bits ^ bits >> 16) * 0x7feb352du;
  bits = (bits ^ bits >> 15) * 0x846ca68bu;
  return static_cast<double>(static_cast<i32>(bits ^ bits >> 16)) * 0x1p-31;
}

template <class F>
float roughly(float v, double exact, u32 bits) {
  const float nearest = static_cast<float>(exact);
  if (v == 0.0f || !std::isnormal(nearest)) return nearest;
  if constexpr (requires { F::ulps; }) {
    const u32 near = std::bit_cast<u32>(nearest), moved = near + static_cast<u32>(std::lround(F::ulps * share_of_error(bits)));
    return moved >> 23 == near >> 23 ? std::bit_cast<float>(moved) : nearest;  // units differ beyond a power of two
  } else {
    return static_cast<float>(exact + F::error(v, exact) * share_of_error(bits));
  }
}

template <class F>
void approx32(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  u32* d = x.row<u32>(op.d[0]);
  const bool ftz = op.b & kFtz, rough = x.launch->config->rough;
  each_active(mask, [&](u32 i) {
    const float v = ftz ? flush(std::bit_cast<float>(a[i])) : std::bit_cast<float>(a[i]);
    const double exact = F::apply(v);
    const float r = rough ? roughly<F>(v, exact, a[i]) : static_cast<float>(exact);
    d[i] = canonical(ftz ? flush(r) : r);
  });
}
// div.approx (PTX ISA 9.7.3.8): divisors of magnitude in (2^126, 2^128) give 0, or NaN for an infinite dividend.
template <bool ftz>
void div_approx(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const double ulps = x.launch->config->rough ? 0x1p-24 : 0.0;  // at most one, then the rounding
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const float p = in32<ftz>(a[i]), q = in32<ftz>(b[i]);
    const float quotient = static_cast<float>(p / q * (1.0 + ulps * share_of_error(a[i] + b[i])));
    const float m = std::fabs(q);
    const bool huge = m > 0x1p126f && m <= std::numeric_limits<float>::max();
    const float zero = std::bit_cast<float>((std::bit_cast<u32>(p) ^ std::bit_cast<u32>(q)) & 0x80000000u);
    const float special = std::fabs(p) <= std::numeric_limits<float>::max() ? zero : std::numeric_limits<float>::quiet_NaN();
    return out32<ftz>(huge ? special : quotient);
  });
}
// rcp and rsqrt .approx.ftz.f64 (PTX ISA 9.7.3.14, 9.7.3.18) keep only the upper word of operand and result.
template <class F>
void approx64(Exec& x, const Op& op, u32 mask) {
  const u64* a = x.row<u64>(op.s[0]);
  u64* d = x.row<u64>(op.d[0]);
  const bool gross = op.b & kFtz;
  each_active(mask, [&](u32 i) {
    u64 bits = a[i];
    if (gross) {
      bits &= 0xffffffff00000000ull;
      if ((bits >> 52 & 0x7ff) == 0) bits &= u64{1} << 63;
    }
    u64 r = std::bit_cast<u64>(F::apply(std::bit_cast<double>(bits)));
    if (gross) {
      if ((r >> 52 & 0x7ff) == 0x7ff && (r << 12)) r = 0x7fffffff00000000ull;
      r &= 0xffffffff00000000ull;
      if ((r >> 52 & 0x7ff) == 0) r &= u64{1} << 63;
    }
    d[i] = r;
  });
}

template <class F, u32 arity>
ExecFn pick_rounded(const AluKey& k) {
  return k.type == Type::f32 ? rounded<float, F, arity> : rounded<double, F, arity>;
}

ExecFn pick_single(const AluKey& k) {
  const bool ftz = k.flags & kFtz;
  const bool plain = k.round == kRn && !(k.flags & kSat);
  switch (k.op) {
    case Alu::add: return !plain ? pick_rounded<Add, 2>(k) : ftz ? binary32<Add, true> : binary32<Add, false>;
    case Alu::sub: return !plain ? pick_rounded<Sub, 2>(k) : ftz ? binary32<Sub, true> : binary32<Sub, false>;
    case Alu::mul_lo: return !plain ? pick_rounded<Mul, 2>(k) : ftz ? binary32<Mul, true> : binary32<Mul, false>;
    case Alu::fma: return !plain ? pick_rounded<Fma, 3>(k) : ftz ? fma32<true> : fma32<false>;
    case Alu::div:
      if (k.flags & kApprox) return ftz ? div_approx<true> : div_approx<false>;
      return !plain ? pick_rounded<Div, 2>(k) : ftz ? binary32<Div, true> : binary32<Div, false>;
    case Alu::sqrt: return k.flags & kApprox ? approx32<SqrtD> : !plain ? pick_rounded<Sqrt, 1>(k) : ftz ? unary32<Sqrt, true> : unary32<Sqrt, false>;
    case Alu::rcp: return k.flags & kApprox ? approx32<RcpD> : !plain ? pick_rounded<Rcp, 1>(k) : ftz ? unary32<Rcp, true> : unary32<Rcp, false>;
    case Alu::min: return k.flags & (kNan | kXorSign) ? extremum<float, Min> : ftz ? binary32<Min, true> : binary32<Min, false>;
    case Alu::max: return k.flags & (kNan | kXorSign) ? extremum<float, Max> : ftz ? binary32<Max, true> : binary32<Max, false>;
    case Alu::abs: return ftz ? sign32<false, true> : sign32<false, false>;
    case Alu::neg: return ftz ? sign32<true, true> : sign32<true, false>;
    case Alu::copysign: return copysign<u32>;
    case Alu::testp: return testp<float>;
    case Alu::rsqrt: return approx32<RsqrtD>;
    case Alu::ex2: return approx32<Ex2>;
    case Alu::lg2: return approx32<Lg2>;
    case Alu::sin: return approx32<Sin>;
    case Alu::cos: return approx32<Cos>;
    case Alu::tanh: return approx32<Tanh>;
    default: return nullptr;
  }
}

ExecFn pick_double(const AluKey& k) {
  const bool plain = k.round == kRn;
  if (k.flags & kSat) return nullptr;
  switch (k.op) {
    case Alu::add: return plain ? binary<double, Add> : pick_rounded<Add, 2>(k);
    case Alu::sub: return plain ? binary<double, Sub> : pick_rounded<Sub, 2>(k);
    case Alu::mul_lo: return plain ? binary<double, Mul> : pick_rounded<Mul, 2>(k);
    case Alu::fma: return plain ? fma64 : pick_rounded<Fma, 3>(k);
    case Alu::div: return plain ? binary<double, Div> : pick_rounded<Div, 2>(k);
    case Alu::sqrt: return plain ? unary<double, Sqrt> : pick_rounded<Sqrt, 1>(k);
    case Alu::rcp:
      if (k.flags & kApprox) return approx64<Rcp>;
      return plain ? unary<double, Rcp> : pick_rounded<Rcp, 1>(k);
    case Alu::rsqrt: return approx64<RsqrtD>;
    case Alu::min: return extremum<double, Min>;
    case Alu::max: return extremum<double, Max>;
    case Alu::abs: return sign64<false>;
    case Alu::neg: return sign64<true>;
    case Alu::copysign: return copysign<u64>;
    case Alu::testp: return testp<double>;
    default: return nullptr;
  }
}

ExecFn pick_small(const AluKey& k) {
  const bool half = k.type == Type::f16 || k.type == Type::f16x2;
  const bool packed = k.type == Type::f16x2 || k.type == Type::bf16x2;
  const bool fast = half && !k.flags;
  if (k.round != kRn) return nullptr;
  switch (k.op) {
    case Alu::add: return !fast ? small<Add, 2> : packed ? half2_fast<Add> : half_fast<Add>;
    case Alu::sub: return !fast ? small<Sub, 2> : packed ? half2_fast<Sub> : half_fast<Sub>;
    case Alu::mul_lo: return !fast ? small<Mul, 2> : packed ? half2_fast<Mul> : half_fast<Mul>;
    case Alu::fma: return small<FmaOdd, 3>;
    case Alu::min: return small_extremum<Min>;
    case Alu::max: return small_extremum<Max>;
    case Alu::abs: return sign16<false>;
    case Alu::neg: return sign16<true>;
    case Alu::tanh: return small<Tanh, 1>;
    case Alu::ex2: return small<Ex2, 1>;
    default: return nullptr;
  }
}

}  // namespace

ExecFn pick_float(const AluKey& k) {
  if (k.type == Type::f32) return pick_single(k);
  if (k.type == Type::f64) return pick_double(k);
  return pick_small(k);
}

}  // namespace tkpy::emulator::TK_ISA

#include "lanes_end.h"
