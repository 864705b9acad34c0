#include "alu.h"

namespace tkpy::emulator {

bool cpu_has_v3() {
#if defined(TK_HAVE_V3) && defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                          __builtin_cpu_supports("popcnt");
  return has;
#else
  return false;
#endif
}

namespace {

enum class Family { integer, floating, compare, convert };

Family family_of(const AluKey& key) {
  switch (key.op) {
    case Alu::setp: case Alu::set: case Alu::selp: case Alu::slct: case Alu::pred_and: case Alu::pred_or:
    case Alu::pred_xor: case Alu::pred_not: case Alu::pred_mov: case Alu::unpack: case Alu::pack:
      return Family::compare;
    case Alu::cvt: case Alu::cvt_pack: case Alu::cvt_pack_integers: return Family::convert;
    case Alu::szext: return key.from == Type::none ? Family::integer : Family::convert;
    case Alu::fma: case Alu::rcp: case Alu::sqrt: case Alu::rsqrt: case Alu::sin: case Alu::cos: case Alu::ex2:
    case Alu::lg2: case Alu::tanh: case Alu::copysign: case Alu::testp:
      return Family::floating;
    case Alu::mov: return Family::integer;
    default: break;
  }
  const bool real = is_float(key.type) || key.type == Type::f16x2 || key.type == Type::bf16x2;
  return real ? Family::floating : Family::integer;
}

}  // namespace

ExecFn pick_alu(const AluKey& key) {
  const Family family = family_of(key);
#ifdef TK_HAVE_V3
  if (cpu_has_v3()) {
    switch (family) {
      case Family::integer: return v3::pick_integer(key);
      case Family::floating: return v3::pick_float(key);
      case Family::compare: return v3::pick_compare(key);
      case Family::convert: return v3::pick_convert(key);
    }
  }
#endif
  switch (family) {
    case Family::integer: return base::pick_integer(key);
    case Family::floating: return base::pick_float(key);
    case Family::compare: return base::pick_compare(key);
    case Family::convert: return base::pick_convert(key);
  }
  return nullptr;
}

}  // namespace tkpy::emulator
