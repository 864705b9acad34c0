#include "bulk.h"

#include <cmath>

#include "numbers.h"

namespace tkpy::emulator::tensor {

namespace {

constexpr const char* kNames[] = {"add", "min", "max", "inc", "dec", "and", "or", "xor"};

template <class T, class F>
void each(const u8* from, u8* to, u32 bytes, F&& combine) {
  for (u32 i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
    T a, b;
    std::memcpy(&a, to + i, sizeof a);
    std::memcpy(&b, from + i, sizeof b);
    const T result = combine(a, b);
    std::memcpy(to + i, &result, sizeof result);
  }
}

template <class T>
void integers(ReduceOp op, const u8* from, u8* to, u32 bytes) {
  switch (op) {
    case ReduceOp::add:
      return each<std::make_unsigned_t<T>>(from, to, bytes, [](auto a, auto b) { return a + b; });
    case ReduceOp::min: return each<T>(from, to, bytes, [](T a, T b) { return b < a ? b : a; });
    case ReduceOp::max: return each<T>(from, to, bytes, [](T a, T b) { return a < b ? b : a; });
    case ReduceOp::inc: return each<T>(from, to, bytes, [](T a, T b) { return a >= b ? T{0} : static_cast<T>(a + 1); });
    case ReduceOp::dec:
      return each<T>(from, to, bytes, [](T a, T b) { return a == 0 || a > b ? b : static_cast<T>(a - 1); });
    case ReduceOp::and_: return each<T>(from, to, bytes, [](T a, T b) { return static_cast<T>(a & b); });
    case ReduceOp::or_: return each<T>(from, to, bytes, [](T a, T b) { return static_cast<T>(a | b); });
    case ReduceOp::xor_: return each<T>(from, to, bytes, [](T a, T b) { return static_cast<T>(a ^ b); });
  }
}

// f16 and bf16. The sum of two is rounded once more than it should be only if a double could not hold it exactly,
// and its 53 bits are more than twice the narrow format's: the second rounding is harmless.
template <Format F>
void halves(ReduceOp op, const u8* from, u8* to, u32 bytes) {
  each<u16>(from, to, bytes, [op](u16 a, u16 b) -> u16 {
    const float x = widen<F>(a), y = widen<F>(b);
    if (op == ReduceOp::add) return static_cast<u16>(narrow<F>(double{x} + double{y}));
    if (std::isnan(x) || std::isnan(y)) return std::isnan(x) ? (std::isnan(y) ? static_cast<u16>(F.nan) : b) : a;
    const bool a_less = x < y || (x == y && std::signbit(x) && !std::signbit(y));
    return a_less == (op == ReduceOp::min) ? a : b;
  });
}

}  // namespace

const char* reduce_name(ReduceOp op) { return kNames[static_cast<u32>(op)]; }

bool reduce_from_name(std::string_view name, ReduceOp* op) {
  for (u8 i = 0; i < std::size(kNames); ++i) {
    if (name != kNames[i]) continue;
    *op = static_cast<ReduceOp>(i);
    return true;
  }
  return false;
}

std::string bulk_reason(u64 destination, u64 source, u64 bytes) {
  const auto check = [](const char* what, u64 value) -> std::string {
    if (value % 16 == 0) return {};
    return std::string("the ") + what + " must be a multiple of 16, got " + std::to_string(value) + " (" +
           std::to_string(value % 16) + " over)";
  };
  if (std::string text = check("destination address", destination); !text.empty()) return text;
  if (std::string text = check("source address", source); !text.empty()) return text;
  return check("size", bytes);
}

std::string reduce_reason(ReduceOp op, Type type, bool shared) {
  const auto among = [type](std::initializer_list<Type> list) {
    for (Type t : list) {
      if (t == type) return true;
    }
    return false;
  };
  bool known = false;
  switch (op) {
    case ReduceOp::add:
      known = among({Type::u32, Type::s32, Type::u64}) ||
              (!shared && among({Type::f16, Type::bf16, Type::f32, Type::f64}));
      break;
    case ReduceOp::min:
    case ReduceOp::max:
      known = among({Type::u32, Type::s32}) || (!shared && among({Type::u64, Type::s64, Type::f16, Type::bf16}));
      break;
    case ReduceOp::inc:
    case ReduceOp::dec: known = type == Type::u32; break;
    case ReduceOp::and_:
    case ReduceOp::or_:
    case ReduceOp::xor_: known = type == Type::b32 || (!shared && type == Type::b64); break;
  }
  if (known) return {};
  return std::string("cp.reduce.async.bulk has no .") + reduce_name(op) + "." + type_name(type) + " to " +
         (shared ? "shared" : "global") + " memory";
}

void reduce_elements(ReduceOp op, Type type, const u8* from, u8* to, u32 bytes) {
  switch (type) {
    case Type::u32:
    case Type::b32: return integers<u32>(op, from, to, bytes);
    case Type::s32: return integers<i32>(op, from, to, bytes);
    case Type::u64:
    case Type::b64: return integers<u64>(op, from, to, bytes);
    case Type::s64: return integers<i64>(op, from, to, bytes);
    case Type::f16: return halves<kF16>(op, from, to, bytes);
    case Type::bf16: return halves<kBf16>(op, from, to, bytes);
    case Type::f32: return each<float>(from, to, bytes, [](float a, float b) { return a + b; });
    case Type::f64: return each<double>(from, to, bytes, [](double a, double b) { return a + b; });
    default: throw std::invalid_argument(reduce_reason(op, type, false));
  }
}

}  // namespace tkpy::emulator::tensor
