#include "numbers.h"

namespace tkpy::emulator::tensor {

namespace {

template <Format F>
constexpr std::array<float, 256> table() {
  std::array<float, 256> values{};
  for (u32 bits = 0; bits < 256; ++bits) values[bits] = widen<F>(bits);
  return values;
}

template <class T, class F>
void each(const u8* bytes, u32 count, float* out, F&& convert) {
  for (u32 i = 0; i < count; ++i) {
    T bits;
    std::memcpy(&bits, bytes + i * sizeof(T), sizeof(T));
    out[i] = convert(bits);
  }
}

}  // namespace

const std::array<float, 256> kE4m3Values = table<kE4m3>();
const std::array<float, 256> kE5m2Values = table<kE5m2>();

void widen_packed(Type type, const u8* bytes, u32 count, float* out) {
  switch (type) {
    case Type::f16: return each<u16>(bytes, count, out, f16_to_f32);
    case Type::bf16: return each<u16>(bytes, count, out, bf16_to_f32);
    case Type::tf32: return each<u32>(bytes, count, out, tf32_to_f32);
    case Type::f32: std::memcpy(out, bytes, count * sizeof(float)); return;
    case Type::e4m3: return each<u8>(bytes, count, out, e4m3_to_f32);
    case Type::e5m2: return each<u8>(bytes, count, out, e5m2_to_f32);
    case Type::s8: return each<i8>(bytes, count, out, [](i8 v) { return static_cast<float>(v); });
    case Type::u8: return each<u8>(bytes, count, out, [](u8 v) { return static_cast<float>(v); });
    case Type::s4:
    case Type::u4:
      for (u32 i = 0; i < count; ++i) {
        const u32 nibble = bytes[i / 2] >> (i % 2 * 4) & 15;
        const bool negative = type == Type::s4 && nibble > 7;
        out[i] = static_cast<float>(static_cast<i32>(nibble) - (negative ? 16 : 0));
      }
      return;
    default: throw std::invalid_argument(std::string("no tensor-core operand has type ") + type_name(type));
  }
}

}  // namespace tkpy::emulator::tensor
