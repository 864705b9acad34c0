// Comparison, selection, predicates, packing moves (PTX ISA 9.7.6, 9.7.8.1-5, 9.7.9.1).
#include "numeric.h"

namespace tkpy::emulator::TK_ISA {
namespace {

template <Cmp cmp, class T>
TK_INLINE inline bool compare(T a, T b) {
  switch (cmp) {
    case Cmp::eq: return a == b;
    case Cmp::ne: return a < b || a > b;  // false for NaN, as the ordered form demands
    case Cmp::lt: return a < b;
    case Cmp::le: return a <= b;
    case Cmp::gt: return a > b;
    case Cmp::ge: return a >= b;
    case Cmp::equ: return !(a < b || a > b);
    case Cmp::neu: return !(a == b);
    case Cmp::ltu: return !(a >= b);
    case Cmp::leu: return !(a > b);
    case Cmp::gtu: return !(a <= b);
    case Cmp::geu: return !(a < b);
    case Cmp::num: return a == a && b == b;
    default: return !(a == a && b == b);
  }
}
inline bool compare_any(Cmp cmp, double a, double b) {
  switch (cmp) {
#define TK_CASE(NAME) case Cmp::NAME: return compare<Cmp::NAME>(a, b);
    TK_CASE(eq) TK_CASE(ne) TK_CASE(lt) TK_CASE(le) TK_CASE(gt) TK_CASE(ge) TK_CASE(equ) TK_CASE(neu) TK_CASE(ltu)
    TK_CASE(leu) TK_CASE(gtu) TK_CASE(geu) TK_CASE(num) TK_CASE(nan)
#undef TK_CASE
  }
  return false;
}

// Op::c: how to combine with the predicate s[2]; d[1]: the complement, kNone if not wanted (PTX ISA 9.7.6.2).
TK_INLINE inline void write_predicates(Exec& x, const Op& op, u32 mask, u32 t) {
  u32 p = t, q = ~t;
  if (op.c) {
    const u32 other = x.pred(op.s[2]);
    p = op.c == 1 ? p & other : op.c == 2 ? p | other : p ^ other;
    q = op.c == 1 ? q & other : op.c == 2 ? q | other : q ^ other;
  }
  if (op.d[0] != kNone) x.preds[op.d[0]] = (x.preds[op.d[0]] & ~mask) | (p & mask);
  if (op.d[1] != kNone) x.preds[op.d[1]] = (x.preds[op.d[1]] & ~mask) | (q & mask);
}

template <class T, Cmp cmp>
void setp(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  u32 t = 0;
  if constexpr (std::is_same_v<T, float>) {
    const bool ftz = op.b & kFtz;
    for (u32 i = 0; i < kLanes; ++i) {
      const float p = std::bit_cast<float>(a[i]), q = std::bit_cast<float>(b[i]);
      t |= compare<cmp>(ftz ? flush(p) : p, ftz ? flush(q) : q) ? 1u << i : 0u;
    }
  } else {
    for (u32 i = 0; i < kLanes; ++i) t |= compare<cmp>(unpack<T>(a[i]), unpack<T>(b[i])) ? 1u << i : 0u;
  }
  write_predicates(x, op, mask, t);
}

template <class T>
ExecFn pick_setp(Cmp cmp) {
  switch (cmp) {
#define TK_CASE(NAME) case Cmp::NAME: return setp<T, Cmp::NAME>;
    TK_CASE(eq) TK_CASE(ne) TK_CASE(lt) TK_CASE(le) TK_CASE(gt) TK_CASE(ge)
    default: break;
  }
  if constexpr (std::is_floating_point_v<T>) {
    switch (cmp) {
      TK_CASE(equ) TK_CASE(neu) TK_CASE(ltu) TK_CASE(leu) TK_CASE(gtu) TK_CASE(geu) TK_CASE(num) TK_CASE(nan)
      default: break;
    }
#undef TK_CASE
  }
  return nullptr;
}

double read_small(u32 bits, Type type, u32 flags) {
  if (type == Type::bf16 || type == Type::bf16x2) return bfloat_to_float(bits & 0xffff);
  if ((flags & kFtz) && (bits & 0x7c00) == 0) bits &= 0x8000;
  return half_to_float(bits & 0xffff);
}

void setp_small(Exec& x, const Op& op, u32 mask) {  // Op::a: Cmp; Op::e: Type; packed: p is the low half, q the high
  const Type type = static_cast<Type>(op.e);
  const u32* a = x.row<u32>(op.s[0]);
  const u32* b = x.row<u32>(op.s[1]);
  const bool packed = type == Type::f16x2 || type == Type::bf16x2;
  u32 t = 0, high = 0;
  each_active(mask, [&](u32 i) {
    const Cmp cmp = static_cast<Cmp>(op.a);
    t |= static_cast<u32>(compare_any(cmp, read_small(a[i], type, op.b), read_small(b[i], type, op.b))) << i;
    if (packed)
      high |= static_cast<u32>(compare_any(cmp, read_small(a[i] >> 16, type, op.b), read_small(b[i] >> 16, type, op.b))) << i;
  });
  if (!packed) return write_predicates(x, op, mask, t);
  Op half = op;
  half.d[1] = kNone;
  write_predicates(x, half, mask, t);
  half.d[0] = op.d[1];
  write_predicates(x, half, mask, high);
}

// set: Op::a Cmp, Op::e source type, Op::f destination type. True is 1.0 or all ones (PTX ISA 9.7.6.1).
bool set_lane(const Op& op, u64 a, u64 b) {
  const Cmp cmp = static_cast<Cmp>(op.a);
  switch (static_cast<Type>(op.e)) {
    case Type::f32: {
      float p = std::bit_cast<float>(static_cast<u32>(a)), q = std::bit_cast<float>(static_cast<u32>(b));
      if (op.b & kFtz) p = flush(p), q = flush(q);
      return compare_any(cmp, p, q);
    }
    case Type::f64: return compare_any(cmp, std::bit_cast<double>(a), std::bit_cast<double>(b));
    case Type::s16: return compare_any(cmp, static_cast<i16>(a), static_cast<i16>(b));
    case Type::s32: return compare_any(cmp, static_cast<i32>(a), static_cast<i32>(b));
    case Type::s64: {
      const i64 p = static_cast<i64>(a), q = static_cast<i64>(b);
      return compare_any(cmp, p < q ? 0 : 1, p > q ? 0 : 1);
    }
    case Type::u64:
    case Type::b64: return compare_any(cmp, a < b ? 0 : 1, a > b ? 0 : 1);
    case Type::f16:
    case Type::bf16: return compare_any(cmp, read_small(static_cast<u32>(a), static_cast<Type>(op.e), op.b),
                                        read_small(static_cast<u32>(b), static_cast<Type>(op.e), op.b));
    default: return compare_any(cmp, static_cast<double>(a), static_cast<double>(b));
  }
}
template <class S>
void set(Exec& x, const Op& op, u32 mask) {
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  u32* d = x.row<u32>(op.d[0]);
  const u32 other = op.c ? x.pred(op.s[2]) : 0;
  const Type from = static_cast<Type>(op.e), to = static_cast<Type>(op.f);
  const bool packed = from == Type::f16x2 || from == Type::bf16x2;
  auto combine = [&](bool t, u32 i) {
    const bool o = other >> i & 1;
    return op.c == 1 ? t && o : op.c == 2 ? t || o : op.c == 3 ? t != o : t;
  };
  each_active(mask, [&](u32 i) {
    if (!packed) {
      const bool t = combine(set_lane(op, a[i], b[i]), i);
      const u32 one = to == Type::f32 ? 0x3f800000u : to == Type::f16 ? 0x3c00u : to == Type::bf16 ? 0x3f80u
                      : type_bits(to) == 16 ? 0xffffu : kFullMask;
      d[i] = t ? one : 0;
      return;
    }
    Op half = op;
    half.e = static_cast<u8>(from == Type::f16x2 ? Type::f16 : Type::bf16);
    const u32 one = to == Type::f16x2 ? 0x3c00u : to == Type::bf16x2 ? 0x3f80u : 0xffffu;
    const u32 lo = combine(set_lane(half, a[i] & 0xffff, b[i] & 0xffff), i) ? one : 0;
    const u32 hi = combine(set_lane(half, u64{a[i]} >> 16 & 0xffff, u64{b[i]} >> 16 & 0xffff), i) ? one : 0;
    d[i] = lo | hi << 16;
  });
}

template <class S>
void selp(Exec& x, const Op& op, u32 mask) {
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  const u32 p = x.pred(op.s[2]);
  each(x.row<S>(op.d[0]), mask, [=](u32 i) TK_INLINE { return p >> i & 1 ? a[i] : b[i]; });
}
template <class S, bool single>  // slct: c >= 0 ? a : b
void slct(Exec& x, const Op& op, u32 mask) {
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  const u32* c = x.row<u32>(op.s[2]);
  const bool ftz = op.b & kFtz;
  each(x.row<S>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    float f = std::bit_cast<float>(c[i]);
    if (ftz) f = flush(f);
    return (single ? f >= 0.0f : static_cast<i32>(c[i]) >= 0) ? a[i] : b[i];
  });
}

void pred_logic(Exec& x, const Op& op, u32 mask) {  // Op::a: 0 and, 1 or, 2 xor, 3 mov
  const u32 a = x.pred(op.s[0]);
  const u32 b = op.a == 3 ? a : x.pred(op.s[1]);
  const u32 r = op.a == 0 ? a & b : op.a == 1 ? a | b : op.a == 2 ? a ^ b : a;
  x.preds[op.d[0]] = (x.preds[op.d[0]] & ~mask) | (r & mask);
}

// mov with a vector on one side. Lists hold rows; kNone is a sink. Op::a: bytes of an element; Op::b: 1 when the scalar
// is a 64-bit row, 2 when 128; Op::c: elements are 64-bit rows.
void unpack_vector(Exec& x, const Op& op, u32 mask) {
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const u32 n = op.list_size, bytes = op.a;
  each_active(mask, [&](u32 i) {
    u64 value[2] = {0, 0};
    if (op.b == 2) {
      value[0] = x.row<u64>(op.s[0])[i];
      value[1] = x.row<u64>(op.s[0] + 2)[i];
    } else {
      value[0] = op.b ? x.row<u64>(op.s[0])[i] : x.row<u32>(op.s[0])[i];
    }
    for (u32 k = 0; k < n; ++k) {
      if (list[k] == kNone) continue;
      u64 part = 0;
      std::memcpy(&part, reinterpret_cast<const u8*>(value) + k * bytes, bytes);
      if (op.c) x.row<u64>(list[k])[i] = part;
      else x.row<u32>(list[k])[i] = static_cast<u32>(part);
    }
  });
}
void pack_vector(Exec& x, const Op& op, u32 mask) {
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const u32 n = op.list_size, bytes = op.a;
  each_active(mask, [&](u32 i) {
    u64 value[2] = {0, 0};
    for (u32 k = 0; k < n; ++k) {
      const u64 part = op.c ? x.row<u64>(list[k])[i] : x.row<u32>(list[k])[i];
      std::memcpy(reinterpret_cast<u8*>(value) + k * bytes, &part, bytes);
    }
    if (op.b == 2) {
      x.row<u64>(op.d[0])[i] = value[0];
      x.row<u64>(op.d[0] + 2)[i] = value[1];
    } else if (op.b) {
      x.row<u64>(op.d[0])[i] = value[0];
    } else {
      x.row<u32>(op.d[0])[i] = static_cast<u32>(value[0]);
    }
  });
}

}  // namespace

ExecFn pick_compare(const AluKey& k) {
  const bool wide = type_bits(k.from == Type::none ? k.type : k.from) == 64;
  switch (k.op) {
    case Alu::setp:
      switch (k.type) {
        case Type::u16:
        case Type::b16: return pick_setp<u16>(k.cmp);
        case Type::s16: return pick_setp<i16>(k.cmp);
        case Type::u32:
        case Type::b32: return pick_setp<u32>(k.cmp);
        case Type::s32: return pick_setp<i32>(k.cmp);
        case Type::u64:
        case Type::b64: return pick_setp<u64>(k.cmp);
        case Type::s64: return pick_setp<i64>(k.cmp);
        case Type::f32: return pick_setp<float>(k.cmp);
        case Type::f64: return pick_setp<double>(k.cmp);
        case Type::f16:
        case Type::bf16:
        case Type::f16x2:
        case Type::bf16x2: return setp_small;
        default: return nullptr;
      }
    case Alu::set: return wide ? set<u64> : set<u32>;
    case Alu::selp: return wide ? selp<u64> : selp<u32>;
    case Alu::slct:
      if (k.from == Type::f32) return type_bits(k.type) == 64 ? slct<u64, true> : slct<u32, true>;
      return type_bits(k.type) == 64 ? slct<u64, false> : slct<u32, false>;
    case Alu::pred_and:
    case Alu::pred_or:
    case Alu::pred_xor:
    case Alu::pred_not:
    case Alu::pred_mov: return pred_logic;
    case Alu::unpack: return unpack_vector;
    case Alu::pack: return pack_vector;
    default: return nullptr;
  }
}

}  // namespace tkpy::emulator::TK_ISA

#include "lanes_end.h"
