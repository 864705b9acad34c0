#include "video.h"

#include <algorithm>
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

namespace {

i64 part(u32 value, u32 bits, u32 index, bool sign) {
  const u64 field = u64{value} >> (bits * index) & ((u64{1} << bits) - 1);
  return sign ? static_cast<i64>(field << (64 - bits)) >> (64 - bits) : static_cast<i64>(field);
}

i64 clamp_to(i64 value, u32 bits, bool sign) {
  const i64 top = (i64{1} << (sign ? bits - 1 : bits)) - 1;
  return std::clamp<i64>(value, sign ? -top - 1 : 0, top);
}

bool compare(Cmp cmp, i64 a, i64 b) {
  switch (cmp) {
    case Cmp::eq: return a == b;
    case Cmp::ne: return a != b;
    case Cmp::lt: return a < b;
    case Cmp::le: return a <= b;
    case Cmp::gt: return a > b;
    default: return a >= b;
  }
}

i64 shift(const VideoOp& op, i64 a, u32 by) {
  const u32 n = op.clamp ? std::min(by, 32u) : by & 31;
  if (op.what == Video::shift_right) return a >> n;
  // The intermediate result has 34 bits (9.7.17).
  return static_cast<i64>(static_cast<u64>(a) << n << 30) >> 30;
}

i64 primary(const VideoOp& op, i64 a, i64 b) {
  switch (op.what) {
    case Video::add: return a + b;
    case Video::sub: return a - b;
    case Video::average: return (a + b + (a + b >= 0)) >> 1;
    case Video::absolute_difference: return a > b ? a - b : b - a;
    case Video::min: return std::min(a, b);
    case Video::max: return std::max(a, b);
    case Video::set: return compare(op.compare, a, b);
    case Video::shift_left:
    case Video::shift_right: return shift(op, a, static_cast<u32>(b));
    case Video::multiply_add: break;
  }
  return 0;
}

// vmad (9.7.17.3): the product, negated or not, plus c in full, shifted, clamped by the sign of the whole.
u32 multiply_add(const VideoOp& op, i64 a, i64 b, u32 c) {
  using Wide = __int128;
  const bool negate_product = op.negate_a != op.negate_b;
  const bool sign = op.a_signed || op.b_signed || negate_product || op.negate_c;
  Wide product = Wide{a} * b;
  Wide addend = sign ? Wide{static_cast<i32>(c)} : Wide{c};
  if (op.plus_one) product += 1;
  else if (negate_product) product = -product;
  else if (op.negate_c) addend = -addend;
  Wide result = (product + addend) >> op.scale;
  if (op.saturate) {
    const Wide top = (Wide{1} << (sign ? 31 : 32)) - 1, bottom = sign ? -top - 1 : 0;
    result = result > top ? top : result < bottom ? bottom : result;
  }
  return static_cast<u32>(result);
}

u32 insert(u32 into, u32 bits, u32 index, i64 value) {
  const u64 ones = ((u64{1} << bits) - 1) << (bits * index);
  return static_cast<u32>((into & ~ones) | (static_cast<u64>(value) << (bits * index) & ones));
}

u32 scalar(const VideoOp& op, u32 a, u32 b, u32 c) {
  const i64 ta = part(a, op.part_bits, op.select_a[0], op.a_signed), tb = part(b, op.b_part_bits, op.select_b[0], op.b_signed);
  if (op.what == Video::multiply_add) return multiply_add(op, ta, tb, c);
  i64 t = primary(op, ta, tb);
  if (op.saturate) t = clamp_to(t, op.d_bits, op.d_signed);
  const i64 third = part(c, 32, 0, op.d_signed);
  switch (op.secondary) {
    case Secondary::add: return static_cast<u32>(t + third);
    case Secondary::min: return static_cast<u32>(std::min(t, third));
    case Secondary::max: return static_cast<u32>(std::max(t, third));
    case Secondary::merge: break;
  }
  return op.d_bits == 32 ? static_cast<u32>(t) : insert(c, op.d_bits, static_cast<u32>(std::countr_zero(op.d_mask)), t);
}

u32 simd(const VideoOp& op, u32 a, u32 b, u32 c) {
  const u32 bits = 32u / op.ways;
  u32 d = c;
  for (u32 i = 0; i < op.ways; ++i) {
    if (!(op.d_mask >> i & 1)) continue;
    auto source = [&](u32 select, bool sign) { return part(select < op.ways ? a : b, bits, select % op.ways, sign); };
    i64 t = primary(op, source(op.select_a[i], op.a_signed), source(op.select_b[i], op.b_signed));
    if (op.saturate) t = clamp_to(t, bits, op.d_signed);
    d = op.secondary == Secondary::add ? d + static_cast<u32>(t) : insert(d, bits, i, t);
  }
  return d;
}

}  // namespace

u32 video(const VideoOp& op, u32 a, u32 b, u32 c) { return op.ways == 1 ? scalar(op, a, b, c) : simd(op, a, b, c); }

void exec_video(Exec& x, const Op& op, u32 mask) {
  const VideoOp& v = x.frame->fn->function->video_ops[static_cast<std::size_t>(op.imm)];
  const u32 *a = x.row<u32>(op.s[0]), *b = x.row<u32>(op.s[1]), *c = x.row<u32>(op.s[2]);
  u32* d = x.row<u32>(op.d[0]);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    d[lane] = video(v, a[lane], b[lane], c[lane]);
  }
}

}  // namespace tkpy::emulator
