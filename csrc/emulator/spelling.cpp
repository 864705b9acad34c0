// What ptxas refuses for sm_90a, by mnemonic. The decoders take modifiers in any combination; here are the rules of the ISA
// that they do not need. tests/emulator/isa_forms.py compares with ptxas.
#include "spelling.h"

#include <algorithm>
#include <initializer_list>

namespace tkpy::emulator {

namespace {

using Names = std::initializer_list<std::string_view>;

struct Spelling {
  const Instr& in;
  bool has(std::string_view name) const { return std::find(in.modifiers.begin(), in.modifiers.end(), name) != in.modifiers.end(); }
  bool any(Names names) const { return std::any_of(names.begin(), names.end(), [&](std::string_view n) { return has(n); }); }
  // The first, second ... modifier that names a type.
  Type type(u32 number) const {
    for (std::string_view m : in.modifiers)
      if (const Type t = type_from_name(m); t != Type::none && number-- == 0) return t;
    return Type::none;
  }
};

bool bf(Type t) { return t == Type::bf16 || t == Type::bf16x2; }
bool half(Type t) { return t == Type::f16 || t == Type::f16x2 || bf(t); }
bool packed8(Type t) { return t == Type::e4m3x2 || t == Type::e5m2x2; }

// cvt between two numbers (PTX ISA 9.7.9.22).
std::string convert_numbers(const Spelling& s, Type to, Type from) {
  const bool integral = s.any({"rni", "rzi", "rmi", "rpi"}), real = s.any({"rn", "rz", "rm", "rp"}), sat = s.has("sat");
  const bool to_real = is_float(to), from_real = is_float(from);
  if (s.has("rna")) return ".rna is for .tf32";
  if (!to_real && !from_real) {
    if (integral || real) return "integers need no rounding";
    const u32 room = type_bits(to) + !is_signed_int(to), need = type_bits(from) + !is_signed_int(from);
    if (sat && is_signed_int(from) <= is_signed_int(to) && (is_signed_int(from) == is_signed_int(to) ? type_bits(to) >= type_bits(from) : room > need))
      return ".sat where every value fits";
  } else if (!to_real || !from_real) {
    if (to_real ? !real || integral : !integral) return to_real ? "needs .rn, .rz, .rm or .rp" : "needs .rni, .rzi, .rmi or .rpi";
    const Type integer = to_real ? from : to, other = to_real ? to : from;
    if (other == Type::bf16 && (sat || type_bits(integer) == 8)) return "bf16 neither saturates nor meets integers of 8 bits";
  } else {
    const bool narrowing = type_bits(to) < type_bits(from), exact = type_bits(to) > type_bits(from) && from != Type::bf16;
    if (integral && to != from) return "rounding to an integer is for one type";
    if (real && (to == from || exact)) return "exact: it takes no rounding";
    if (!integral && !real && narrowing) return "needs .rn, .rz, .rm or .rp";
    if (sat && (bf(to) || bf(from))) return "bf16 does not saturate";
  }
  if (s.any({"relu", "satfinite"}) && (!half(to) || from != Type::f32 || !s.any({"rn", "rz"}) || s.any({"ftz", "sat"})))
    return ".relu and .satfinite are for .rn and .rz of f32 to f16, bf16";
  if (s.has("ftz") && to != Type::f32 && from != Type::f32) return ".ftz is for f32";
  return {};
}

std::string convert(const Spelling& s) {
  if (s.has("pack")) return {};
  const Type to = s.type(0), from = s.type(1);
  if (to == Type::tf32) {
    if (s.has("rna") ? s.has("relu") : s.has("satfinite")) return "tf32 has .rna{.satfinite} and .rn, .rz{.relu}";
  } else if (packed8(to)) {
    if (!s.has("rn") || !s.has("satfinite") || from == Type::bf16x2) return "to fp8 needs .rn.satfinite, from f32 or f16x2";
  } else if (packed8(from)) {
    if (to != Type::f16x2) return "fp8 becomes f16x2";
  } else if (to == Type::f16x2 || to == Type::bf16x2) {
    if (s.any({"ftz", "sat"})) return "pairs take .relu and .satfinite";
  } else if ((is_float(to) || is_int(to)) && (is_float(from) || is_int(from))) {
    return convert_numbers(s, to, from);
  }
  return {};
}

// set, setp (9.7.5 to 9.7.7).
std::string compare(const Spelling& s) {
  const bool set = s.in.opcode == "set";
  const Type to = set ? s.type(0) : Type::none, from = s.type(set ? 1 : 0);
  const bool real = is_float(from) || half(from);
  if (!real && s.any({"equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"})) return "an unordered comparison of integers";
  if (!is_unsigned_int(from) && s.any({"lo", "ls", "hi", "hs"})) return ".lo, .ls, .hi and .hs are for unsigned integers";
  if (is_bits(from) && !s.any({"eq", "ne"})) return "bits compare by .eq and .ne only";
  if (s.has("ftz") && from != Type::f32 && from != Type::f16 && from != Type::f16x2) return ".ftz is for f32 and f16";
  if (!set) return {};
  if (s.has("ftz") && bf(to)) return ".ftz is not for bf16";
  if (to == Type::u16x2 || to == Type::s16x2) return "no result of this type";
  if ((to == Type::u16 || to == Type::s16) && from != Type::f16 && from != Type::bf16) return "a 16-bit integer result is for f16 and bf16";
  if ((to == Type::f16 && from == Type::bf16) || ((to == Type::f16x2 || to == Type::bf16x2) && to != from)) return "two formats of 16 bits";
  return {};
}

std::string arithmetic(const Spelling& s) {
  const Type type = s.type(0);
  if (s.in.opcode == "ex2") {
    if (half(type) && s.has("ftz") != bf(type)) return bf(type) ? "bf16 needs .ftz" : "f16 has no .ftz";
    return {};
  }
  if (bf(type) && s.any({"ftz", "sat"})) return "bf16 has neither .ftz nor .sat";
  if (s.has("oob") && s.has("ftz")) return ".oob with .ftz";
  if (s.has("relu") && (is_unsigned_int(type) || type == Type::u16x2)) return ".relu of unsigned integers";
  return {};
}

std::string load_store(const Spelling& s) {
  if (s.has("async")) {
    const Type type = s.type(0);
    return s.has("v4") && type_bits(type) == 64 ? "more than 16 bytes" : "";
  }
  if (half(s.type(0))) return "no such type: memory has .b16 and .b32";
  if (s.any({"volatile", "relaxed", "acquire", "release", "mmio"}) && s.any({"local", "const", "param", "param::entry", "param::func"}))
    return "strong and volatile accesses are to global, shared and generic memory";
  if (s.any({"L2::evict_first", "L2::evict_last", "L2::evict_normal"})) return "L2 eviction priorities here are not sm_90's";
  return {};
}

std::string multimem(const Spelling& s) {
  if (!s.has("ld_reduce")) return {};
  const Type type = s.type(0);
  if (type == Type::f16 || type == Type::bf16) return "f16 and bf16 come in pairs";
  if (s.any({"min", "max"}) && (type == Type::f32 || type == Type::f64)) return "f32 and f64 have .add only";
  if (s.has("acc::f32") && !(s.has("add") && half(type))) return ".acc::f32 is for .add of f16 and bf16";
  return {};
}

std::string reduce_async(const Spelling& s) {
  if (!s.has("async")) return {};
  const Type type = s.type(0);
  const bool legal = s.any({"inc", "dec"}) ? type == Type::u32
                     : s.any({"and", "or", "xor"}) ? type == Type::b32
                     : type == Type::u32 || type == Type::s32 || (type == Type::u64 && s.has("add"));
  return legal ? "" : "no such reduction of this type";
}

std::string atomic(const Spelling& s) {
  if (s.in.opcode == "red" && s.has("async")) return reduce_async(s);
  const bool rounded = half(s.type(0)) && s.has("add");
  if (rounded && !s.has("noftz")) return "f16 and bf16 need .noftz";
  if (s.has("noftz") && !half(s.type(0))) return ".noftz is for f16 and bf16";
  return {};
}

std::string mbarrier(const Spelling& s) {
  const bool semantics = s.any({"release", "acquire", "relaxed"}), scope = s.any({"cta", "cluster"});
  return semantics != scope ? "semantics and scope come together" : "";
}

// A tensor copy names its rank: `.2d` has two coordinates.
std::string bulk(const Spelling& s) {
  const bool prefetch = s.has("prefetch"), hint = s.has("L2::cache_hint");
  if (s.has("tensor")) {
    u32 rank = 0;
    for (std::string_view m : s.in.modifiers)
      if (m.size() == 2 && m[1] == 'd' && m[0] >= '1' && m[0] <= '5') rank = static_cast<u32>(m[0] - '0');
    for (const Operand& o : s.in.operands)
      if (o.kind == Operand::address && o.items.size() == 2 && o.items[1].items.size() != rank) return "as many coordinates as dimensions";
    if (s.has("im2col") && prefetch && (s.in.operands.size() < 2 || s.in.operands[1].items.size() + 2 != rank)) return "im2col has two offsets fewer than dimensions";
  }
  if (s.has("multicast::cluster") && !s.has("shared::cluster")) return ".multicast::cluster is to shared::cluster";
  if (prefetch) {
    const bool tensor = s.has("tensor");
    for (std::string_view m : s.in.modifiers)
      if (m != "async" && m != "bulk" && m != "prefetch" && m != "L2" && m != "global" && m != "L2::cache_hint" &&
          !(tensor && (m == "tensor" || m == "tile" || m == "im2col" || (m.size() == 2 && m[1] == 'd'))))
        return "modifier '." + std::string(m) + "'";
    if (!s.has("L2") || !s.has("global")) return "a prefetch is to .L2.global";
    if (s.in.operands.size() != (tensor ? 1u + s.has("im2col") : 2u) + hint) return "wrong number of operands";
  }
  const Type type = s.type(0);
  if (s.has("reduce") && !s.has("tensor") && s.has("add") && half(type) && !s.has("noftz")) return "f16 and bf16 need .noftz";
  return {};
}

std::string hint(const Spelling& s) {
  const std::string_view name = s.in.opcode;
  const auto& m = s.in.modifiers;
  if (name == "prefetchu") return m.size() == 1 && m[0] == "L1" && s.in.operands.size() == 1 ? "" : "there is prefetchu.L1";
  if (name == "prefetch") {
    const std::string_view space = m.size() == 2 ? m[0] : std::string_view(), what = m.empty() ? std::string_view() : m.back();
    const bool legal = what == "tensormap"            ? space.empty() || space == "const" || space == "param"
                       : what == "L1" || what == "L2" ? space.empty() || space == "global" || space == "local"
                       : what == "L2::evict_last" || what == "L2::evict_normal" ? space.empty() || space == "global"
                                                                                : false;
    return legal && m.size() <= 2 && s.in.operands.size() == 1 ? "" : "no such prefetch";
  }
  // createpolicy.fractional, .range{.global}: a primary and, if any, a secondary priority; .cvt.L2
  if (m.empty() || m.back() != "b64") return "createpolicy ends in .b64";
  if (m[0] == "cvt") return m.size() == 3 && m[1] == "L2" && s.in.operands.size() == 2 ? "" : "there is createpolicy.cvt.L2.b64";
  const bool range = m[0] == "range";
  if (!range && m[0] != "fractional") return "a policy is .fractional, .range or .cvt";
  const std::size_t first = 1 + (range && m.size() > 1 && m[1] == "global");
  if (m.size() < first + 2 || m.size() > first + 3) return "a policy has one or two priorities";
  const std::string_view one = m[first], two = m.size() == first + 3 ? m[first + 1] : "L2::evict_unchanged";
  if (one != "L2::evict_last" && one != "L2::evict_normal" && one != "L2::evict_first" && one != "L2::evict_unchanged") return "no such priority";
  if (two != "L2::evict_first" && two != "L2::evict_unchanged") return "a secondary priority is .L2::evict_first or .L2::evict_unchanged";
  const std::size_t operands = s.in.operands.size();
  return (range ? operands == 4 : operands == 1 || operands == 2) ? "" : "wrong number of operands";
}

std::string tensormap(const Spelling& s) {
  if (!s.has("replace")) return {};
  const bool wide = s.any({"global_address", "global_stride"});
  if (s.type(s.has("b1024") ? 0 : 1) != (wide ? Type::b64 : Type::b32)) return wide ? "this field is .b64" : "this field is .b32";
  if (s.any({"elemtype", "interleave_layout", "swizzle_mode", "fill_mode", "swizzle_atomicity"}) && !s.in.operands.empty() &&
      s.in.operands.back().kind != Operand::imm)
    return "this field is set to an immediate";
  return {};
}

std::string multiply_video(const Spelling& s) {
  if (s.in.operands.size() != 4) return {};
  const bool product = s.in.operands[1].negated != s.in.operands[2].negated, sum = s.in.operands[3].negated;
  if (s.has("po") ? product || sum : product && sum) return s.has("po") ? ".po with a negated operand" : "both product and sum negated";
  return {};
}

}  // namespace

std::string spelling_reason(const Instr& in) {
  const Spelling s{in};
  const std::string_view name = in.opcode;
  static constexpr struct {
    std::string_view name;
    std::string (*rule)(const Spelling&);
  } kRules[] = {{"cvt", convert},      {"set", compare},      {"setp", compare},          {"fma", arithmetic},      {"add", arithmetic},
                {"sub", arithmetic},   {"mul", arithmetic},   {"abs", arithmetic},        {"neg", arithmetic},      {"min", arithmetic},
                {"max", arithmetic},   {"ex2", arithmetic},   {"ld", load_store},         {"st", load_store},       {"multimem", multimem},
                {"red", atomic},       {"atom", atomic},      {"mbarrier", mbarrier},     {"cp", bulk},             {"prefetch", hint},
                {"prefetchu", hint},   {"createpolicy", hint}, {"tensormap", tensormap},  {"vmad", multiply_video}};
  for (const auto& [opcode, rule] : kRules)
    if (opcode == name) {
      std::string why = rule(s);
      return why.empty() ? why : "not in the ISA: " + why;
    }
  if (name == "slct" && s.has("ftz") && s.type(1) != Type::f32) return "not in the ISA: slct.ftz selects by f32";
  if (name == "membar" && s.has("proxy") && !s.has("alias")) return "not in the ISA: membar.proxy has .alias only";
  return {};
}

}  // namespace tkpy::emulator
