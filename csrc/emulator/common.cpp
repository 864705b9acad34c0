#include "common.h"

#include <array>
#include <utility>

namespace tkpy::emulator {

namespace {

struct TypeRow {
  const char* name;
  Type type;
  u32 bits;
};

constexpr std::array<TypeRow, 31> kTypes{{
    {"", Type::none, 0},         {"pred", Type::pred, 1},     {"b1", Type::b1, 1},         {"b8", Type::b8, 8},
    {"b16", Type::b16, 16},      {"b32", Type::b32, 32},      {"b64", Type::b64, 64},      {"b128", Type::b128, 128},
    {"u4", Type::u4, 4},         {"u8", Type::u8, 8},         {"u16", Type::u16, 16},      {"u32", Type::u32, 32},
    {"u64", Type::u64, 64},      {"s4", Type::s4, 4},         {"s8", Type::s8, 8},         {"s16", Type::s16, 16},
    {"s32", Type::s32, 32},      {"s64", Type::s64, 64},      {"f16", Type::f16, 16},      {"bf16", Type::bf16, 16},
    {"f32", Type::f32, 32},      {"f64", Type::f64, 64},      {"tf32", Type::tf32, 32},    {"e4m3", Type::e4m3, 8},
    {"e5m2", Type::e5m2, 8},     {"f16x2", Type::f16x2, 32},  {"bf16x2", Type::bf16x2, 32}, {"u16x2", Type::u16x2, 32},
    {"s16x2", Type::s16x2, 32},  {"e4m3x2", Type::e4m3x2, 16}, {"e5m2x2", Type::e5m2x2, 16},
}};
static_assert([] {  // a type is the number of its row
  for (std::size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].type != static_cast<Type>(i)) return false;
  return true;
}());

}  // namespace

Type type_from_name(std::string_view name) {
  if (name.empty() || name.size() > 6) return Type::none;
  for (const TypeRow& row : kTypes) {
    if (name == row.name) return row.type;
  }
  return Type::none;
}

const char* type_name(Type type) { return kTypes[static_cast<std::size_t>(type)].name; }

u32 type_bits(Type type) { return kTypes[static_cast<std::size_t>(type)].bits; }

const char* space_name(Space space) {
  switch (space) {
    case Space::generic: return "generic";
    case Space::reg: return "reg";
    case Space::global: return "global";
    case Space::shared: return "shared";
    case Space::shared_cluster: return "shared::cluster";
    case Space::local: return "local";
    case Space::param: return "param";
    case Space::constant: return "const";
    case Space::frame: return "param";
  }
  return "?";
}

}  // namespace tkpy::emulator
