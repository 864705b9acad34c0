// Names shared by every file of the emulator: fixed-width integers, the one exception type, PTX scalar types and spaces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace tkpy::emulator {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr u32 kLanes = 32;
constexpr u32 kFullMask = 0xffffffffu;
constexpr u32 kNone = 0xffffffffu;

// Text that is not PTX, or PTX that breaks a rule of the language. `line` counts from 1; 0 when no line applies.
class PtxError : public std::runtime_error {
 public:
  PtxError(u32 line_number, const std::string& what)
      : std::runtime_error(line_number ? "line " + std::to_string(line_number) + ": " + what : what),
        line(line_number) {}
  u32 line;
};

enum class Type : u8 {
  none, pred,
  b1, b8, b16, b32, b64, b128,
  u4, u8, u16, u32, u64,
  s4, s8, s16, s32, s64,
  f16, bf16, f32, f64, tf32, e4m3, e5m2,
  f16x2, bf16x2, u16x2, s16x2, e4m3x2, e5m2x2,
};

// Returns Type::none for text that names no type; `name` comes without its dot.
Type type_from_name(std::string_view name);
const char* type_name(Type type);
u32 type_bits(Type type);
inline u32 type_bytes(Type type) { return (type_bits(type) + 7) / 8; }
inline bool is_signed_int(Type t) { return t == Type::s8 || t == Type::s16 || t == Type::s32 || t == Type::s64; }
inline bool is_unsigned_int(Type t) { return t == Type::u8 || t == Type::u16 || t == Type::u32 || t == Type::u64; }
inline bool is_int(Type t) { return is_signed_int(t) || is_unsigned_int(t); }
inline bool is_bits(Type t) { return t >= Type::b1 && t <= Type::b128; }
inline bool is_float(Type t) { return t == Type::f16 || t == Type::bf16 || t == Type::f32 || t == Type::f64; }

enum class Cmp : u8 { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

// `param` is a kernel's parameter block; parameters of device functions live in the thread's own frame (`frame`).
enum class Space : u8 { generic, reg, global, shared, shared_cluster, local, param, constant, frame };

const char* space_name(Space space);

// Generic addresses (PTX ISA 6.4.1.1: generic addressing maps const, param, local and shared windows). Global memory,
// constants and kernel parameters are host memory and keep their host addresses, which are below 2^47. The other
// windows are disjoint from those; the low 32 bits of a shared address are its shared::cluster address:
// bits 24.. hold rank + 1 (0: this CTA), so that the shared::cta window lies inside the shared::cluster window.
constexpr u64 kWindowShift = 56;
constexpr u64 kSharedWindow = u64{1} << kWindowShift;
constexpr u64 kLocalWindow = u64{2} << kWindowShift;
constexpr u64 kCodeWindow = u64{3} << kWindowShift;
constexpr u32 kRankShift = 24;
constexpr u32 kSharedOffsetMask = (1u << kRankShift) - 1;

// Shared memory starts at 1024: the first KiB belongs to the system on sm_90, and a null shared pointer is an error.
constexpr u32 kSharedBase = 1024;
constexpr u32 kMaxShared = 232448;  // 227 KiB: the largest block-opt-in size of sm_90

// Uninitialised memory and registers hold this pattern: a NaN as f16, bf16, f32 and f64.
constexpr u32 kPoison = 0x7ff77ff7u;

inline u64 align_up(u64 value, u64 alignment) { return (value + alignment - 1) / alignment * alignment; }

}  // namespace tkpy::emulator
