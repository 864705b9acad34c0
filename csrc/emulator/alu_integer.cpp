// Integer, bit and logic instructions (PTX ISA 9.7.1, 9.7.2, 9.7.7, 9.7.8).
#include "lanes.h"

namespace tkpy::emulator::TK_ISA {
namespace {

template <class T> using Unsigned = std::make_unsigned_t<T>;

// Arithmetic wraps: computed unsigned, which C++ defines. u16 is widened first, or the promotion to int would overflow.
template <class T> using Wrap = std::conditional_t<sizeof(T) < 4, u32, Unsigned<T>>;

struct Add { template <class T> static T apply(T a, T b) { return static_cast<T>(Wrap<T>(a) + Wrap<T>(b)); } };
struct Sub { template <class T> static T apply(T a, T b) { return static_cast<T>(Wrap<T>(a) - Wrap<T>(b)); } };
struct MulLo { template <class T> static T apply(T a, T b) { return static_cast<T>(Wrap<T>(a) * Wrap<T>(b)); } };
struct MadLo {
  template <class T> static T apply(T a, T b, T c) { return static_cast<T>(Wrap<T>(a) * Wrap<T>(b) + Wrap<T>(c)); }
};

template <class T>
T mul_hi(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    using W = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>((static_cast<W>(a) * static_cast<W>(b)) >> 64);
  } else if constexpr (std::is_signed_v<T>) {
    return static_cast<T>((static_cast<i64>(a) * static_cast<i64>(b)) >> (8 * sizeof(T)));
  } else {
    return static_cast<T>((static_cast<u64>(a) * static_cast<u64>(b)) >> (8 * sizeof(T)));
  }
}
struct MulHi { template <class T> static T apply(T a, T b) { return mul_hi(a, b); } };
struct MadHi {
  template <class T> static T apply(T a, T b, T c) { return static_cast<T>(Wrap<T>(mul_hi(a, b)) + Wrap<T>(c)); }
};

// Division by zero gives all ones on the machine ("unspecified", PTX ISA 9.7.1.8); the remainder is then the dividend.
struct Div {
  template <class T> static T apply(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if constexpr (std::is_signed_v<T>) if (b == -1) return static_cast<T>(Wrap<T>(0) - Wrap<T>(a));
    return static_cast<T>(a / b);
  }
};
struct Rem {
  template <class T> static T apply(T a, T b) {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>) if (b == -1) return 0;
    return static_cast<T>(a % b);
  }
};

struct Abs { template <class T> static T apply(T a) { return a < 0 ? static_cast<T>(Wrap<T>(0) - Wrap<T>(a)) : a; } };
struct Neg { template <class T> static T apply(T a) { return static_cast<T>(Wrap<T>(0) - Wrap<T>(a)); } };
struct Min { template <class T> static T apply(T a, T b) { return a < b ? a : b; } };
struct Max { template <class T> static T apply(T a, T b) { return a > b ? a : b; } };
struct MinRelu { template <class T> static T apply(T a, T b) { return std::max<T>(0, a < b ? a : b); } };
struct MaxRelu { template <class T> static T apply(T a, T b) { return std::max<T>(0, a > b ? a : b); } };
struct Sad {
  template <class T> static T apply(T a, T b, T c) {
    return static_cast<T>(Wrap<T>(c) + (a < b ? Wrap<T>(b) - Wrap<T>(a) : Wrap<T>(a) - Wrap<T>(b)));
  }
};
struct AddSat {
  static i32 apply(i32 a, i32 b) { return static_cast<i32>(std::clamp<i64>(i64{a} + b, INT32_MIN, INT32_MAX)); }
};
struct SubSat {
  static i32 apply(i32 a, i32 b) { return static_cast<i32>(std::clamp<i64>(i64{a} - b, INT32_MIN, INT32_MAX)); }
};
struct MadHiSat {
  static i32 apply(i32 a, i32 b, i32 c) {
    return static_cast<i32>(std::clamp<i64>(i64{mul_hi(a, b)} + c, INT32_MIN, INT32_MAX));
  }
};

struct And { template <class T> static T apply(T a, T b) { return a & b; } };
struct Or { template <class T> static T apply(T a, T b) { return a | b; } };
struct Xor { template <class T> static T apply(T a, T b) { return a ^ b; } };
struct Not { template <class T> static T apply(T a) { return static_cast<T>(~a); } };
struct Cnot { template <class T> static T apply(T a) { return a == 0; } };
struct Mov { template <class T> static T apply(T a) { return a; } };
struct Popc { template <class T> static u32 apply(T a) { return static_cast<u32>(std::popcount(a)); } };
struct Clz { template <class T> static u32 apply(T a) { return static_cast<u32>(std::countl_zero(a)); } };
struct Brev {
  template <class T> static T apply(T a) {
    T r = 0;
    for (u32 i = 0; i < 8 * sizeof(T); ++i) r |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
    return r;
  }
};

// Packed 16-bit halves.
template <class H, class F>
struct Halves {
  static u32 apply(u32 a, u32 b) {
    const u16 lo = static_cast<u16>(F::template apply<H>(static_cast<H>(a), static_cast<H>(b)));
    const u16 hi = static_cast<u16>(F::template apply<H>(static_cast<H>(a >> 16), static_cast<H>(b >> 16)));
    return lo | static_cast<u32>(hi) << 16;
  }
};

template <class T, class F>
void to_u32(Exec& x, const Op& op, u32 mask) {  // popc, clz: the result is 32 bits wide whatever the source
  const Storage<T>* a = x.row<Storage<T>>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE { return F::apply(static_cast<T>(a[i])); });
}

// Shifts: amounts are unsigned 32 bits and clamp to the width (PTX ISA 9.7.8.8, 9.7.8.9).
struct Shl {
  template <class T> static T apply(T a, u32 n) { return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(Wrap<T>(a) << n); }
};
struct Shr {
  template <class T> static T apply(T a, u32 n) {
    if constexpr (std::is_signed_v<T>) return static_cast<T>(a >> std::min<u32>(n, 8 * sizeof(T) - 1));
    else return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(a >> n);
  }
};
template <class T, class F>
void shift(Exec& x, const Op& op, u32 mask) {
  const Storage<T>* a = x.row<Storage<T>>(op.s[0]);
  const u32* n = x.row<u32>(op.s[1]);
  each(x.row<Storage<T>>(op.d[0]), mask, [=](u32 i) TK_INLINE { return pack<T>(F::apply(unpack<T>(a[i]), n[i])); });
}

template <class T>  // narrow type; the result has twice its width
void mul_wide(Exec& x, const Op& op, u32 mask) {
  using W = std::conditional_t<std::is_signed_v<T>, std::conditional_t<sizeof(T) == 2, i32, i64>,
                               std::conditional_t<sizeof(T) == 2, u32, u64>>;
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  each(x.row<Storage<W>>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    return static_cast<Storage<W>>(static_cast<Unsigned<W>>(static_cast<W>(static_cast<T>(a[i]))) *
                                   static_cast<Unsigned<W>>(static_cast<W>(static_cast<T>(b[i]))));
  });
}

template <class T>
void mad_wide(Exec& x, const Op& op, u32 mask) {
  using W = std::conditional_t<std::is_signed_v<T>, std::conditional_t<sizeof(T) == 2, i32, i64>,
                               std::conditional_t<sizeof(T) == 2, u32, u64>>;
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const Storage<W>* c = x.row<Storage<W>>(op.s[2]);
  each(x.row<Storage<W>>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    return static_cast<Storage<W>>(static_cast<Unsigned<W>>(static_cast<W>(static_cast<T>(a[i]))) *
                                       static_cast<Unsigned<W>>(static_cast<W>(static_cast<T>(b[i]))) +
                                   c[i]);
  });
}

// Extended precision: op.b says whether the carry is read and written; for subtraction it is a borrow (PTX ISA 9.7.2).
template <class T, bool subtract>
void carry_chain(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  S* d = x.row<S>(op.d[0]);
  const u32 in = op.b & kCarryIn ? x.preds[kPredCarry] : 0;
  u32 out = 0;
  each_active(mask, [&](u32 i) {
    const S carry = in >> i & 1;
    if constexpr (subtract) {
      const S t = a[i] - b[i];
      out |= static_cast<u32>(a[i] < b[i] || t < carry) << i;
      d[i] = t - carry;
    } else {
      const S t = a[i] + b[i];
      const S r = t + carry;
      out |= static_cast<u32>(t < a[i] || r < t) << i;
      d[i] = r;
    }
  });
  if (op.b & kCarryOut) x.preds[kPredCarry] = (x.preds[kPredCarry] & ~mask) | out;
}

template <class T, bool high>
void mad_carry(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  const S* c = x.row<S>(op.s[2]);
  S* d = x.row<S>(op.d[0]);
  const u32 in = op.b & kCarryIn ? x.preds[kPredCarry] : 0;
  u32 out = 0;
  each_active(mask, [&](u32 i) {
    const S carry = in >> i & 1;
    const S product = high ? pack<T>(mul_hi(unpack<T>(a[i]), unpack<T>(b[i]))) : S(a[i] * b[i]);
    const S t = product + c[i];
    const S r = t + carry;
    out |= static_cast<u32>(t < product || r < t) << i;
    d[i] = r;
  });
  if (op.b & kCarryOut) x.preds[kPredCarry] = (x.preds[kPredCarry] & ~mask) | out;
}

// bfe (PTX ISA 9.7.1.19): position and length are the low 8 bits; signed fields replicate bit min(pos+len-1, msb).
template <class T>
T bit_field_extract(T a, u32 b, u32 c) {
  constexpr u32 msb = 8 * sizeof(T) - 1;
  const u32 pos = b & 0xff, len = c & 0xff;
  using U = Unsigned<T>;
  const U bits = static_cast<U>(a);
  U sign = 0;
  if constexpr (std::is_signed_v<T>) if (len) sign = bits >> std::min(pos + len - 1, msb) & 1;
  U r = pos > msb ? U(0) : static_cast<U>(bits >> pos);
  const u32 have = pos > msb ? 0 : std::min(len, msb + 1 - pos);
  if (have <= msb) {
    r &= (U(1) << have) - 1;
    if (sign) r |= static_cast<U>(~U(0) << have);
  }
  return static_cast<T>(r);
}
template <class T>
void bfe(Exec& x, const Op& op, u32 mask) {
  const Storage<T>* a = x.row<Storage<T>>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  each(x.row<Storage<T>>(op.d[0]), mask,
       [=](u32 i) TK_INLINE { return pack<T>(bit_field_extract(unpack<T>(a[i]), b[i], c[i])); });
}

template <class T>  // d = b with the low bits of a at [pos, pos+len)
void bfi(Exec& x, const Op& op, u32 mask) {
  const T* a = x.row<T>(op.s[0]);
  const T* b = x.row<T>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  const u32* l = x.row<u32>(op.s[3]);
  constexpr u32 width = 8 * sizeof(T);
  each(x.row<T>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 pos = c[i] & 0xff, len = l[i] & 0xff;
    if (pos >= width || len == 0) return b[i];
    const T ones = len >= width ? ~T(0) : (T(1) << len) - 1;
    return static_cast<T>((b[i] & ~(ones << pos)) | ((a[i] & ones) << pos));
  });
}

template <class T, bool shiftamt>
void bfind(Exec& x, const Op& op, u32 mask) {
  using U = Unsigned<T>;
  const Storage<T>* a = x.row<Storage<T>>(op.s[0]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    U v = static_cast<U>(a[i]);
    if constexpr (std::is_signed_v<T>) if (static_cast<T>(v) < 0) v = ~v;
    if (v == 0) return kNone;
    const u32 lead = static_cast<u32>(std::countl_zero(v));
    return shiftamt ? lead : static_cast<u32>(8 * sizeof(T) - 1) - lead;
  });
}

void lop3(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  u32 t[8];  // minterm k of the table, as a mask of ones
  for (u32 k = 0; k < 8; ++k) t[k] = (op.imm >> k & 1) ? kFullMask : 0;
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 p = a[i], q = b[i], r = c[i];
    return (t[0] & ~p & ~q & ~r) | (t[1] & ~p & ~q & r) | (t[2] & ~p & q & ~r) | (t[3] & ~p & q & r) |
           (t[4] & p & ~q & ~r) | (t[5] & p & ~q & r) | (t[6] & p & q & ~r) | (t[7] & p & q & r);
  });
}

// prmt (PTX ISA 9.7.8.7). Op::a: 0 selectors in c; 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16.
u32 permute(u32 a, u32 b, u32 c, u32 mode) {
  const u64 bytes = a | static_cast<u64>(b) << 32;
  u32 selectors = c;
  const u32 k = c & 3;
  static constexpr u16 kModes[6][4] = {{0x3210, 0x4321, 0x5432, 0x6543}, {0x5670, 0x6701, 0x7012, 0x0123},
                                       {0x0000, 0x1111, 0x2222, 0x3333}, {0x3210, 0x3211, 0x3222, 0x3333},
                                       {0x0000, 0x1110, 0x2210, 0x3210}, {0x1010, 0x3232, 0x1010, 0x3232}};
  if (mode) selectors = kModes[mode - 1][k];
  u32 r = 0;
  for (u32 i = 0; i < 4; ++i) {
    const u32 s = selectors >> (4 * i) & 0xf;
    u32 byte = static_cast<u32>(bytes >> (8 * (s & 7))) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;  // replicate the sign
    r |= byte << (8 * i);
  }
  return r;
}
void prmt(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  const u32 mode = op.a;
  u32* d = x.row<u32>(op.d[0]);
  each_active(mask, [&](u32 i) { d[i] = permute(a[i], b[i], c[i], mode); });
}

template <bool left, bool clamp>  // shf: the 64-bit value b:a shifted
void shf(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 n = clamp ? std::min(c[i], 32u) : c[i] & 31;
    const u64 v = a[i] | static_cast<u64>(b[i]) << 32;
    return static_cast<u32>(left ? (v << n) >> 32 : v >> n);
  });
}

template <class A, class B, bool halves>  // dp4a, dp2a; Op::a selects the half of b for dp2a
void dot_product(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  const u32 high = op.a;
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    u32 sum = c[i];
    if constexpr (halves) {
      using H = std::conditional_t<std::is_signed_v<A>, i16, u16>;
      for (u32 k = 0; k < 2; ++k)
        sum += static_cast<u32>(static_cast<H>(a[i] >> (16 * k)) * static_cast<B>(b[i] >> (16 * high + 8 * k)));
    } else {
      for (u32 k = 0; k < 4; ++k)
        sum += static_cast<u32>(static_cast<A>(a[i] >> (8 * k)) * static_cast<B>(b[i] >> (8 * k)));
    }
    return sum;
  });
}

template <class T, bool clamp>  // szext (PTX ISA 9.7.1.22): extend from width b
void szext(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 n = clamp ? std::min(b[i], 32u) : b[i] & 31;
    if (n == 32) return a[i];
    u32 r = a[i] & ((1u << n) - 1);
    if (std::is_signed_v<T> && n && (a[i] >> (n - 1) & 1)) r |= ~0u << n;
    return r;
  });
}

template <bool clamp>  // bmsk: b ones from bit a
void bmsk(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const u32 pos = clamp ? std::min(a[i], 32u) : a[i] & 31;
    const u32 len = clamp ? std::min(b[i], 32u) : b[i] & 31;
    const u64 ones = (u64{1} << len) - 1;
    return static_cast<u32>(pos >= 32 ? 0 : ones << pos);
  });
}

// fns (PTX ISA 9.7.1.17): the offset-th set bit of the mask, counted from bit `base`; no such bit gives all ones.
u32 find_nth_set(u32 bits, u32 base, i32 offset) {
  base &= 31;
  if (offset == 0) return bits >> base & 1 ? base : kNone;
  const i32 step = offset > 0 ? 1 : -1;
  i64 left = offset > 0 ? offset : -i64{offset};
  for (i32 at = static_cast<i32>(base); at >= 0 && at < 32; at += step)
    if ((bits >> at & 1) && --left == 0) return static_cast<u32>(at);
  return kNone;
}
void fns(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  u32* d = x.row<u32>(op.d[0]);
  each_active(mask, [&](u32 i) { d[i] = find_nth_set(a[i], b[i], static_cast<i32>(c[i])); });
}

template <bool high, bool mad, class T>  // 24-bit products; .sat is mad24.hi.s32's alone
void mul24(Exec& x, const Op& op, u32 mask) {
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const u32* c = x.row<u32>(op.s[mad ? 2 : 0]);
  auto narrow = [](u32 v) -> i64 {
    return std::is_signed_v<T> ? i64{static_cast<i32>(v << 8) >> 8} : i64{v & 0xffffff};
  };
  const bool saturate = op.b & kSat;
  each(x.row<u32>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    const i64 p = narrow(a[i]) * narrow(b[i]);
    if (saturate) return static_cast<u32>(std::clamp<i64>((p >> 16) + static_cast<i32>(c[i]), INT32_MIN, INT32_MAX));
    return static_cast<u32>(high ? p >> 16 : p) + (mad ? c[i] : 0);
  });
}

void move128(Exec& x, const Op& op, u32 mask) {  // a 128-bit register is two rows of 64 bits
  for (u32 half = 0; half < 4; half += 2) {
    const u64* a = x.row<u64>(op.s[0] + half);
    each(x.row<u64>(op.d[0] + half), mask, [=](u32 i) TK_INLINE { return a[i]; });
  }
}

ExecFn pick_packed(const AluKey& k) {
  const bool sign = k.type == Type::s16x2;
  const bool relu = k.flags & kRelu;
  switch (k.op) {
    case Alu::add: return binary<u32, Halves<u16, Add>>;
    case Alu::sub: return binary<u32, Halves<u16, Sub>>;
    case Alu::min: return relu ? binary<u32, Halves<i16, MinRelu>>
                               : sign ? binary<u32, Halves<i16, Min>> : binary<u32, Halves<u16, Min>>;
    case Alu::max: return relu ? binary<u32, Halves<i16, MaxRelu>>
                               : sign ? binary<u32, Halves<i16, Max>> : binary<u32, Halves<u16, Max>>;
    default: return nullptr;
  }
}

ExecFn pick_carry(const AluKey& k) {
  const bool wide = type_bits(k.type) == 64;
  const bool sign = is_signed_int(k.type);
  switch (k.op) {
    case Alu::add: return wide ? carry_chain<u64, false> : carry_chain<u32, false>;
    case Alu::sub: return wide ? carry_chain<u64, true> : carry_chain<u32, true>;
    case Alu::mad_lo: return wide ? mad_carry<u64, false> : mad_carry<u32, false>;
    case Alu::mad_hi:
      if (sign) return wide ? mad_carry<i64, true> : mad_carry<i32, true>;
      return wide ? mad_carry<u64, true> : mad_carry<u32, true>;
    default: return nullptr;
  }
}

ExecFn pick_dot(const AluKey& k) {
  const bool sa = k.type == Type::s32, sb = k.from == Type::s32;
  if (k.op == Alu::dp4a)
    return sa ? (sb ? dot_product<i8, i8, false> : dot_product<i8, u8, false>)
              : (sb ? dot_product<u8, i8, false> : dot_product<u8, u8, false>);
  return sa ? (sb ? dot_product<i8, i8, true> : dot_product<i8, u8, true>)
            : (sb ? dot_product<u8, i8, true> : dot_product<u8, u8, true>);
}

ExecFn pick_bit(const AluKey& k) {
  const bool wide = type_bits(k.type) == 64;
  switch (k.op) {
    case Alu::and_: TK_PICK_BITS(binary, And, k.type)
    case Alu::or_: TK_PICK_BITS(binary, Or, k.type)
    case Alu::xor_: TK_PICK_BITS(binary, Xor, k.type)
    case Alu::not_: TK_PICK_BITS(unary, Not, k.type)
    case Alu::cnot: TK_PICK_BITS(unary, Cnot, k.type)
    case Alu::mov:
      if (type_bits(k.type) == 128) return move128;
      TK_PICK_BITS(unary, Mov, k.type)
    case Alu::shl: TK_PICK_BITS(shift, Shl, k.type)
    case Alu::shr:
      if (is_bits(k.type)) { TK_PICK_BITS(shift, Shr, k.type) }
      TK_PICK_INT(shift, Shr, k.type)
    case Alu::popc: return wide ? to_u32<u64, Popc> : to_u32<u32, Popc>;
    case Alu::clz: return wide ? to_u32<u64, Clz> : to_u32<u32, Clz>;
    case Alu::brev: return wide ? unary<u64, Brev> : unary<u32, Brev>;
    case Alu::bfe:
      if (is_signed_int(k.type)) return wide ? bfe<i64> : bfe<i32>;
      return wide ? bfe<u64> : bfe<u32>;
    case Alu::bfi: return wide ? bfi<u64> : bfi<u32>;
    case Alu::bfind:
      if (is_signed_int(k.type)) return wide ? bfind<i64, false> : bfind<i32, false>;
      return wide ? bfind<u64, false> : bfind<u32, false>;
    case Alu::bfind_shift:
      if (is_signed_int(k.type)) return wide ? bfind<i64, true> : bfind<i32, true>;
      return wide ? bfind<u64, true> : bfind<u32, true>;
    case Alu::lop3: return lop3;
    case Alu::prmt: return prmt;
    case Alu::shf_l: return k.clamp ? shf<true, true> : shf<true, false>;
    case Alu::shf_r: return k.clamp ? shf<false, true> : shf<false, false>;
    case Alu::szext:
      if (is_signed_int(k.type)) return k.clamp ? szext<i32, true> : szext<i32, false>;
      return k.clamp ? szext<u32, true> : szext<u32, false>;
    case Alu::bmsk: return k.clamp ? bmsk<true> : bmsk<false>;
    case Alu::fns: return fns;
    default: return nullptr;
  }
}

ExecFn pick_wide(const AluKey& k) {
  const bool mad = k.op == Alu::mad_wide;
  switch (k.type) {
    case Type::u16: return mad ? mad_wide<u16> : mul_wide<u16>;
    case Type::s16: return mad ? mad_wide<i16> : mul_wide<i16>;
    case Type::u32: return mad ? mad_wide<u32> : mul_wide<u32>;
    case Type::s32: return mad ? mad_wide<i32> : mul_wide<i32>;
    default: return nullptr;
  }
}

}  // namespace

ExecFn pick_integer(const AluKey& k) {
  if (k.type == Type::u16x2 || k.type == Type::s16x2) return pick_packed(k);
  if (k.flags & (kCarryIn | kCarryOut)) return pick_carry(k);
  const bool sat = k.flags & kSat;
  const bool relu = k.flags & kRelu;
  if (sat && k.type != Type::s32) return nullptr;
  switch (k.op) {
    case Alu::add: if (sat) return binary<i32, AddSat>; TK_PICK_INT(binary, Add, k.type)
    case Alu::sub: if (sat) return binary<i32, SubSat>; TK_PICK_INT(binary, Sub, k.type)
    case Alu::mul_lo: TK_PICK_INT(binary, MulLo, k.type)
    case Alu::mul_hi: TK_PICK_INT(binary, MulHi, k.type)
    case Alu::mul_wide:
    case Alu::mad_wide: return pick_wide(k);
    case Alu::mad_lo: TK_PICK_INT(ternary, MadLo, k.type)
    case Alu::mad_hi: if (sat) return ternary<i32, MadHiSat>; TK_PICK_INT(ternary, MadHi, k.type)
    case Alu::mul24_lo: return is_signed_int(k.type) ? mul24<false, false, i32> : mul24<false, false, u32>;
    case Alu::mul24_hi: return is_signed_int(k.type) ? mul24<true, false, i32> : mul24<true, false, u32>;
    case Alu::mad24_lo: return is_signed_int(k.type) ? mul24<false, true, i32> : mul24<false, true, u32>;
    case Alu::mad24_hi: return is_signed_int(k.type) ? mul24<true, true, i32> : mul24<true, true, u32>;
    case Alu::sad: TK_PICK_INT(ternary, Sad, k.type)
    case Alu::div: TK_PICK_INT(binary, Div, k.type)
    case Alu::rem: TK_PICK_INT(binary, Rem, k.type)
    case Alu::abs:
      return k.type == Type::s16 ? unary<i16, Abs> : k.type == Type::s32 ? unary<i32, Abs> : unary<i64, Abs>;
    case Alu::neg:
      return k.type == Type::s16 ? unary<i16, Neg> : k.type == Type::s32 ? unary<i32, Neg> : unary<i64, Neg>;
    case Alu::min: if (relu) return k.type == Type::s32 ? binary<i32, MinRelu> : nullptr; TK_PICK_INT(binary, Min, k.type)
    case Alu::max: if (relu) return k.type == Type::s32 ? binary<i32, MaxRelu> : nullptr; TK_PICK_INT(binary, Max, k.type)
    case Alu::dp4a:
    case Alu::dp2a: return pick_dot(k);
    default: return pick_bit(k);
  }
}

}  // namespace tkpy::emulator::TK_ISA

#include "lanes_end.h"
