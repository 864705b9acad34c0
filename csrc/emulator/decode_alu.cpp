// Decoding of arithmetic, bit, comparison, conversion and move instructions into lane handlers.
#include <algorithm>

#include "decode.h"
#include "specials.h"

namespace tkpy::emulator {

namespace {

Cmp cmp_from(std::string_view name, bool& known) {
  static constexpr std::string_view kNames[] = {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu",
                                                "geu", "num", "nan", "lo", "ls", "hi", "hs"};
  for (u32 i = 0; i < 18; ++i) {
    if (name != kNames[i]) continue;
    known = true;
    static constexpr Cmp kUnsigned[] = {Cmp::lt, Cmp::le, Cmp::gt, Cmp::ge};
    return i < 14 ? static_cast<Cmp>(i) : kUnsigned[i - 14];
  }
  known = false;
  return Cmp::eq;
}

Type packed_half(Type t) { return t == Type::f16x2 ? Type::f16 : t == Type::bf16x2 ? Type::bf16 : t; }

}  // namespace

bool Decoder::decode_alu() {
  return decode_arith() || decode_bits() || decode_compare() || decode_move() || decode_cvt() || decode_video();
}

// One destination of the key's type, `sources` of the same type, then the handler for it.
void Decoder::alu(const AluKey& key, u32 sources, Op op) {
  op.fn = pick_alu(key);
  op.a = key.round;
  op.b = key.flags;
  op.c = packed_half(key.type) == Type::bf16;
  op.e = key.type == Type::f16x2 || key.type == Type::bf16x2;
  op.in_place = true;
  op.f = 0;
  arity(sources + 1, sources + 1);
  dst(op, 0, arg(0), key.type);
  for (u32 i = 0; i < sources; ++i) src(op, i, arg(i + 1), key.type);
  finish(op);
}

u32 Decoder::alu_flags(bool ftz, bool sat) {
  u32 flags = 0;
  if (ftz && has("ftz")) flags |= kFtz;
  if (sat && has("sat")) flags |= kSat;
  return flags;
}

bool Decoder::decode_arith() {
  const std::string_view name = in_->opcode;
  AluKey k;
  struct Row { std::string_view name; Alu op; u32 sources; };
  static constexpr Row kRows[] = {
      {"add", Alu::add, 2}, {"sub", Alu::sub, 2}, {"mul", Alu::mul_lo, 2}, {"mad", Alu::mad_lo, 3}, {"fma", Alu::fma, 3},
      {"addc", Alu::add, 2}, {"subc", Alu::sub, 2}, {"madc", Alu::mad_lo, 3}, {"mul24", Alu::mul24_lo, 2},
      {"mad24", Alu::mad24_lo, 3}, {"sad", Alu::sad, 3}, {"div", Alu::div, 2}, {"rem", Alu::rem, 2}, {"abs", Alu::abs, 1},
      {"neg", Alu::neg, 1}, {"min", Alu::min, 2}, {"max", Alu::max, 2}, {"rcp", Alu::rcp, 1}, {"sqrt", Alu::sqrt, 1},
      {"rsqrt", Alu::rsqrt, 1}, {"sin", Alu::sin, 1}, {"cos", Alu::cos, 1}, {"ex2", Alu::ex2, 1}, {"lg2", Alu::lg2, 1},
      {"tanh", Alu::tanh, 1}, {"copysign", Alu::copysign, 2}};
  const Row* row = std::find_if(std::begin(kRows), std::end(kRows), [&](const Row& r) { return r.name == name; });
  if (row == std::end(kRows)) return false;
  k.op = row->op;
  k.type = need_type();
  const bool real = is_float(k.type) || k.type == Type::f16x2 || k.type == Type::bf16x2;
  if (is_bits(k.type)) throw NotModelled{"arithmetic on an untyped operand"};
  const bool chain = name == "addc" || name == "subc" || name == "madc";
  if (chain) k.flags |= kCarryIn;
  if (!real && has("cc")) k.flags |= kCarryOut;
  if (name == "mul" || name == "mad" || name == "madc" || name == "mul24" || name == "mad24") {
    const bool mad = row->sources == 3;
    if (real) {
      k.op = mad ? Alu::fma : Alu::mul_lo;
    } else if (has("lo")) {
      // as named
    } else if (has("hi")) {
      k.op = name == "mul24" ? Alu::mul24_hi : name == "mad24" ? Alu::mad24_hi : mad ? Alu::mad_hi : Alu::mul_hi;
    } else if (has("wide")) {
      k.op = mad ? Alu::mad_wide : Alu::mul_wide;
    } else {
      throw NotModelled{"neither .lo, .hi nor .wide"};
    }
  }
  Op op;
  if (real) {
    k.round = rounding();
    k.flags |= static_cast<u8>(alu_flags(k.type != Type::f64 || k.op == Alu::rcp || k.op == Alu::rsqrt, true));
    if (has("relu")) k.flags |= kRelu;
    if (k.op == Alu::min || k.op == Alu::max) {
      if (has("NaN")) k.flags |= kNan;
      if (has("xorsign") && has("abs")) k.flags |= kXorSign;
    }
    if (k.op == Alu::fma && type_bits(k.type) != 64 && k.type != Type::f32 && has("oob")) k.flags |= kOutOfBounds;
    if (has("approx")) k.flags |= kApprox;
    else if (k.op == Alu::div && has("full")) k.flags |= kFull;
    op.flops = k.op == Alu::fma ? 2 : k.op == Alu::add || k.op == Alu::sub || k.op == Alu::mul_lo ? 1 : 0;
    if (k.type == Type::f16x2 || k.type == Type::bf16x2) op.flops *= 2;
  } else {
    if ((k.op == Alu::add || k.op == Alu::sub || k.op == Alu::mad_hi || k.op == Alu::mad24_hi) && has("sat")) k.flags |= kSat;
    if ((k.op == Alu::min || k.op == Alu::max) && has("relu")) k.flags |= kRelu;
  }
  if (k.op == Alu::mul_wide || k.op == Alu::mad_wide) {
    const bool half = type_bits(k.type) == 16;
    const Type wide = half ? Type::b32 : Type::b64;
    op.fn = pick_alu(k);
    op.in_place = false;
    arity(row->sources + 1, row->sources + 1);
    dst(op, 0, arg(0), wide);
    src(op, 0, arg(1), k.type);
    src(op, 1, arg(2), k.type);
    if (row->sources == 3) src(op, 2, arg(3), wide);
    finish(op);
    return true;
  }
  alu(k, row->sources, op);
  return true;
}

bool Decoder::decode_bits() {
  const std::string_view name = in_->opcode;
  AluKey k;
  Op op;
  auto shape = [&](Alu alu_op, std::initializer_list<Type> sources, Type result) {
    k.op = alu_op;
    op.fn = pick_alu(k);
    op.in_place = true;
    arity(sources.size() + 1, sources.size() + 1);
    dst(op, 0, arg(0), result);
    u32 slot = 0;
    for (Type t : sources) {
      src(op, slot, arg(slot + 1), t);
      ++slot;
    }
    finish(op);
    return true;
  };
  if (name == "and" || name == "or" || name == "xor" || name == "not" || name == "cnot") {
    k.type = need_type();
    if (k.type == Type::pred) {
      k.op = Alu::pred_and;
      op.fn = pick_alu(k);
      op.a = name == "and" ? 0 : name == "or" ? 1 : name == "xor" ? 2 : 3;
      arity(name == "not" ? 2 : 3, name == "not" ? 2 : 3);
      op.d[0] = pred_dst(arg(0));
      if (op.d[0] == kNone) throw NotModelled{"a sink"};
      op.s[0] = pred_src(arg(1)) ^ (name == "not");
      if (name != "not") op.s[1] = pred_src(arg(2));
      finish(op);
      return true;
    }
    if (name == "not") return shape(Alu::not_, {k.type}, k.type);
    if (name == "cnot") return shape(Alu::cnot, {k.type}, k.type);
    return shape(name == "and" ? Alu::and_ : name == "or" ? Alu::or_ : Alu::xor_, {k.type, k.type}, k.type);
  }
  if (name == "shl" || name == "shr") {
    k.type = need_type();
    return shape(name == "shl" ? Alu::shl : Alu::shr, {k.type, Type::u32}, k.type);
  }
  if (name == "bfe") {
    k.type = need_type();
    return shape(Alu::bfe, {k.type, Type::u32, Type::u32}, k.type);
  }
  if (name == "bfi") {
    k.type = need_type();
    return shape(Alu::bfi, {k.type, k.type, Type::u32, Type::u32}, k.type);
  }
  if (name == "bfind") {
    const bool amount = has("shiftamt");
    k.type = need_type();
    return shape(amount ? Alu::bfind_shift : Alu::bfind, {k.type}, Type::u32);
  }
  if (name == "popc" || name == "clz" || name == "brev") {
    k.type = need_type();
    return shape(name == "popc" ? Alu::popc : name == "clz" ? Alu::clz : Alu::brev, {k.type},
                 name == "brev" ? k.type : Type::u32);
  }
  if (name == "shf") {
    const bool left = has("l");
    if (!left && !has("r")) return false;
    k.clamp = has("clamp");
    if (!k.clamp && !has("wrap")) return false;
    k.type = need_type();
    return shape(left ? Alu::shf_l : Alu::shf_r, {k.type, k.type, Type::u32}, k.type);
  }
  if (name == "prmt") {
    static constexpr std::string_view kModes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    for (u8 i = 0; i < 6; ++i)
      if (has(kModes[i])) op.a = static_cast<u8>(i + 1);
    k.type = need_type();
    return shape(Alu::prmt, {k.type, k.type, k.type}, k.type);
  }
  if (name == "lop3") {
    k.type = need_type();
    k.op = Alu::lop3;
    const bool tests = arg(0).kind == Operand::pair;  // d|p: p is (d != 0) combined with another predicate
    const u8 combine = has("and") ? 1 : has("or") ? 2 : 0;
    if (tests != (combine != 0)) return false;
    op.fn = pick_alu(k);
    op.in_place = true;
    arity(5 + tests, 5 + tests);
    const Operand& to = tests ? arg(0).items[0] : arg(0);
    const bool sink = to.kind == Operand::sink;
    const u32 result = sink ? temp(32) : to.index;
    if (sink) ref(Ref::d, 0, result, true);
    else dst(op, 0, to, k.type);
    for (u32 i = 0; i < 3; ++i) src(op, i, arg(i + 1), k.type);
    if (arg(4).kind != Operand::imm) throw NotModelled{"a table that is not an immediate"};
    op.imm = static_cast<i64>(arg(4).value & 0xff);
    finish(op);
    if (!tests) return true;
    AluKey test;
    test.op = Alu::setp, test.type = Type::b32, test.cmp = Cmp::ne;
    Op p;
    p.fn = pick_alu(test);
    p.helper = true;
    p.c = combine;
    p.d[0] = pred_dst(arg(0).items[1]), p.d[1] = kNone;
    ref(Ref::s, 0, result, false);
    p.s[1] = constant(0, false);
    p.s[2] = pred_src(arg(5));
    emit(p);
    return true;
  }
  if (name == "fns") {
    k.type = need_type();
    return shape(Alu::fns, {Type::b32, Type::b32, Type::s32}, Type::b32);
  }
  if (name == "szext" || name == "bmsk") {
    k.clamp = has("clamp");
    if (!k.clamp && !has("wrap")) return false;
    k.type = need_type();
    return shape(name == "szext" ? Alu::szext : Alu::bmsk, {k.type, Type::u32}, k.type);
  }
  if (name == "dp4a" || name == "dp2a") {
    if (name == "dp2a") {
      op.a = has("hi");
      if (!op.a && !has("lo")) return false;
    }
    k.type = need_type();
    k.from = need_type();
    return shape(name == "dp4a" ? Alu::dp4a : Alu::dp2a, {Type::b32, Type::b32, Type::b32}, Type::b32);
  }
  return false;
}

bool Decoder::decode_compare() {
  const std::string_view name = in_->opcode;
  if (name == "testp") {
    static constexpr std::string_view kWhat[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    Op op;
    op.a = 255;
    for (u8 i = 0; i < 6; ++i)
      if (has(kWhat[i])) op.a = i;
    if (op.a == 255) return false;
    AluKey k;
    k.op = Alu::testp;
    k.type = need_type();
    op.fn = pick_alu(k);
    arity(2, 2);
    op.d[0] = pred_dst(arg(0));
    if (op.d[0] == kNone) throw NotModelled{"a sink"};
    src(op, 0, arg(1), k.type);
    finish(op);
    return true;
  }
  if (name == "selp" || name == "slct") {
    AluKey k;
    Op op;
    k.flags = static_cast<u8>(alu_flags(true, false));
    k.type = need_type();
    k.op = name == "selp" ? Alu::selp : Alu::slct;
    if (name == "slct") k.from = need_type();
    op.fn = pick_alu(k);
    op.b = k.flags;
    op.in_place = true;
    arity(4, 4);
    dst(op, 0, arg(0), k.type);
    src(op, 0, arg(1), k.type);
    src(op, 1, arg(2), k.type);
    if (name == "selp") op.s[2] = pred_src(arg(3));
    else src(op, 2, arg(3), k.from);
    finish(op);
    return true;
  }
  if (name != "setp" && name != "set") return false;
  AluKey k;
  Op op;
  bool known = false;
  for (std::size_t i = 0; i < in_->modifiers.size() && !known; ++i) {
    k.cmp = cmp_from(in_->modifiers[i], known);
    if (known) taken_ |= u64{1} << i;
  }
  if (!known) throw NotModelled{"no comparison"};
  op.c = has("and") ? 1 : has("or") ? 2 : has("xor") ? 3 : 0;
  k.flags = static_cast<u8>(alu_flags(true, false));
  k.op = name == "set" ? Alu::set : Alu::setp;
  k.type = need_type();
  const Type to = k.type;
  if (name == "set") k.from = need_type();
  const Type from = name == "set" ? k.from : k.type;
  op.fn = pick_alu(k);
  op.a = static_cast<u8>(k.cmp);
  op.b = k.flags;
  op.e = static_cast<u8>(from);
  op.f = static_cast<u32>(to);
  arity(op.c ? 4 : 3, op.c ? 4 : 3);
  if (name == "set") {
    dst(op, 0, arg(0), to);
  } else if (arg(0).kind == Operand::pair) {
    op.d[0] = pred_dst(arg(0).items[0]);
    op.d[1] = pred_dst(arg(0).items[1]);
  } else {
    op.d[0] = pred_dst(arg(0));
    op.d[1] = kNone;
  }
  src(op, 0, arg(1), from);
  src(op, 1, arg(2), from);
  if (op.c) op.s[2] = pred_src(arg(3));
  finish(op);
  return true;
}

bool Decoder::decode_move() {
  if (in_->opcode != "mov") return false;
  mov();
  return true;
}

void Decoder::mov() {
  AluKey k;
  k.type = need_type();
  Op op;
  arity(2, 2);
  const Operand& to = arg(0);
  const Operand& from = arg(1);
  if (k.type == Type::pred) {
    k.op = Alu::pred_mov;
    op.fn = pick_alu(k);
    op.a = 3;
    op.d[0] = pred_dst(to);
    if (op.d[0] == kNone) throw NotModelled{"a sink"};
    if (from.kind == Operand::special) {  // %is_explicit_cluster
      k.op = Alu::setp, k.type = Type::u32, k.cmp = Cmp::ne;
      op.fn = pick_alu(k);
      op.d[1] = kNone;
      src(op, 0, from, Type::u32);
      op.s[1] = constant(0, false);
      return finish(op);
    }
    op.s[0] = pred_src(from);
    return finish(op);
  }
  const bool unpack = to.kind == Operand::vector && to.items.size() > 1;
  const bool pack = from.kind == Operand::vector && from.items.size() > 1;
  if (unpack || pack) {
    if (unpack && pack) throw NotModelled{"vectors on both sides"};
    const Operand& v = unpack ? to : from;
    const u32 bits = type_bits(k.type) / static_cast<u32>(v.items.size());
    if (bits != 8 && bits != 16 && bits != 32 && bits != 64) throw NotModelled{"elements of this size"};
    const Type element = bits == 64 ? Type::b64 : bits == 32 ? Type::b32 : bits == 16 ? Type::b16 : Type::b8;
    k.op = unpack ? Alu::unpack : Alu::pack;
    op.fn = pick_alu(k);
    op.a = static_cast<u8>(bits / 8);
    op.b = type_bits(k.type) == 128 ? 2 : type_bits(k.type) == 64 ? 1 : 0;
    op.c = bits == 64;
    list(op, v, element, unpack);
    if (unpack) src(op, 0, from, k.type);
    else dst(op, 0, to, k.type);
    return finish(op);
  }
  if (from.kind == Operand::special) {
    op.fn = exec_special;
    op.a = static_cast<u8>(from.index);
    op.b = type_bits(k.type) == 64;
    dst(op, 0, to, k.type);
    return finish(op);
  }
  k.op = Alu::mov;
  op.fn = pick_alu(k);
  op.in_place = true;
  dst(op, 0, to, k.type);
  src(op, 0, from, k.type);
  finish(op);
}

// cvt.pack.sat.<to>.s32{.b32} d, a, b{, c}: Op::a bits of a part, Op::b: it is signed, Op::c: c is there.
void Decoder::pack_integers() {
  static constexpr std::pair<std::string_view, u8> kTo[] = {{"u16", 16}, {"s16", 16}, {"u8", 8}, {"s8", 8},
                                                            {"u4", 4},   {"s4", 4},   {"u2", 2}, {"s2", 2}};
  Op op;
  for (const auto& [name, bits] : kTo)
    if (!op.a && has(name)) op.a = bits, op.b = name[0] == 's';
  if (!op.a || !has("sat") || !has("s32")) throw NotModelled{"this kind of cvt.pack"};
  op.c = op.a < 16;
  if (op.c && !has("b32")) throw NotModelled{"no type of the third operand"};
  AluKey k;
  k.op = Alu::cvt_pack_integers;
  op.fn = pick_alu(k);
  op.in_place = true;
  arity(3 + op.c, 3 + op.c);
  dst(op, 0, arg(0), Type::b32);
  for (u32 i = 0; i < 2u + op.c; ++i) src(op, i, arg(i + 1), Type::b32);
  finish(op);
}

bool Decoder::decode_cvt() {
  if (in_->opcode != "cvt") return false;
  if (has("pack")) return pack_integers(), true;
  AluKey k;
  Op op;
  k.op = Alu::cvt;
  if (has("rni")) k.integral = true, k.round = kRn;
  else if (has("rzi")) k.integral = true, k.round = kRz;
  else if (has("rmi")) k.integral = true, k.round = kRm;
  else if (has("rpi")) k.integral = true, k.round = kRp;
  else if (has("rna")) k.round = kRna;
  else k.round = rounding();
  k.flags = static_cast<u8>(alu_flags(true, true));
  if (has("relu")) k.flags |= kRelu;
  k.satfinite = has("satfinite");
  k.type = need_type();
  k.from = need_type();
  const bool pack = k.type == Type::f16x2 || k.type == Type::bf16x2 || k.type == Type::e4m3x2 || k.type == Type::e5m2x2;
  const Type packed = k.type;
  if (pack) {
    k.op = Alu::cvt_pack;
    k.type = k.type == Type::f16x2 ? Type::f16 : k.type == Type::bf16x2 ? Type::bf16
             : k.type == Type::e4m3x2 ? Type::e4m3 : Type::e5m2;
  }
  op.fn = pick_alu(k);
  op.a = k.round;
  op.b = k.flags;
  op.c = static_cast<u8>(k.from);
  op.e = static_cast<u8>(k.type);
  op.f = static_cast<u32>(k.integral) | static_cast<u32>(k.satfinite) << 1;
  if (pack) {
    const bool from_pair = k.from != Type::f32;
    arity(from_pair ? 2 : 3, from_pair ? 2 : 3);
    dst(op, 0, arg(0), packed);
    src(op, 0, arg(1), k.from);
    if (!from_pair) src(op, 1, arg(2), k.from);
    return finish(op), true;
  }
  arity(2, 2);
  // Registers may be wider than the types (PTX ISA 9.4.1): sources are read by their low bits, and a result narrower than
  // its register is extended by its own sign.
  bool wide_source = type_bits(k.from) == 64;
  const Operand& from = arg(1);
  if (from.kind == Operand::reg && vreg_bits(from.index) == 64 && !wide_source) {
    // The low word of a 64-bit register: read it as the 64-bit integer it is, then narrow.
    if (!is_int(k.from)) throw NotModelled{"a register whose size is not the instruction's"};
    AluKey low;
    low.op = Alu::cvt;
    low.type = k.from;
    low.from = Type::u64;
    Op narrow;
    narrow.fn = pick_alu(low);
    const u32 t = temp(32);
    emit_before(narrow, t);
    refs_.push_back(Ref{Ref::s, false, static_cast<u32>(f_.ops.size() - 1), 0, from.index, 0});
    ref(Ref::s, 0, t, false);
  } else {
    src(op, 0, from, k.from);
  }
  const Operand& to = arg(0);
  if (to.kind != Operand::reg) throw NotModelled{"this kind of destination"};
  const u32 reg_class = vreg_bits(to.index);
  const u32 reg_bits = type_bits(ast_.registers[to.index].type);
  const u32 want = type_bits(k.type) <= 32 ? 32 : 64;
  const bool extend = is_int(k.type) && reg_bits > type_bits(k.type);
  if (reg_class == want) {
    ref(Ref::d, 0, to.index, true);
    finish(op);
    if (!extend) return true;
    AluKey e;
    e.op = Alu::szext;
    e.from = Type::b32;
    Op more;
    more.fn = pick_alu(e);
    more.helper = true;
    more.e = static_cast<u8>(k.type);
    more.f = reg_bits;
    ref(Ref::s, 0, to.index, false);
    ref(Ref::d, 0, to.index, true);
    emit(more);
    return true;
  }
  if (reg_class != 64 || !is_int(k.type)) throw NotModelled{"a destination whose size is not the instruction's"};
  const u32 t = temp(32);
  ref(Ref::d, 0, t, true);
  finish(op);
  AluKey e;
  e.op = Alu::cvt;
  e.type = is_signed_int(k.type) ? Type::s64 : Type::u64;
  e.from = k.type;
  Op more;
  more.fn = pick_alu(e);
  more.helper = true;
  ref(Ref::s, 0, t, false);
  ref(Ref::d, 0, to.index, true);
  emit(more);
  return true;
}

}  // namespace tkpy::emulator
