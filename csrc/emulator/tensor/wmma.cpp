#include "wmma.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "gemm.h"
#include "mma.h"
#include "numbers.h"

namespace tkpy::emulator::tensor {

namespace {

constexpr u32 kMaxRows = 32, kMaxK = 32, kMaxC = 8;

using Accumulators = float[kMaxRows / 16 * kMaxC * 2][kLanes];

// Registers before a fragment repeats itself.
u32 distinct(const WmmaOp& op, WmmaMatrix matrix, Type type) {
  const u32 rows = matrix == WmmaMatrix::b ? op.k : op.m, cols = matrix == WmmaMatrix::a ? op.k : op.n;
  return rows * cols / (kLanes * wmma_elements(type, matrix));
}

// The number of C's register in the kernel's order, which always has 16 rows: fragments.h, c_cell.
u32 kernel_register(const WmmaOp& op, u32 reg) { return op.m == 8 ? reg / 2 * 4 + reg % 2 : reg; }

template <class Put>
void unpack(const WmmaOp& op, WmmaMatrix matrix, Type type, const u32* const* from, Put&& put) {
  const u32 e = wmma_elements(type, matrix);
  float wide[kLanes * 8];
  for (u32 reg = 0; reg < distinct(op, matrix, type); ++reg) {
    widen_packed(type, reinterpret_cast<const u8*>(from[reg]), kLanes * e, wide);
    for (u32 i = 0; i < kLanes * e; ++i) put(wmma_cell(op, matrix, type, i / e, reg, i % e), wide[i]);
  }
}

void multiply(const WmmaOp& op, const u32* const* a, const u32* const* b, float* const* rows) {
  const u32 padded = std::max(op.m, 16u);
  float am[kMaxRows * kMaxK] = {}, bm[kMaxRows * kMaxK], pa[kMaxRows * kMaxK * 4], pb[kMaxRows * kMaxK];
  unpack(op, WmmaMatrix::a, op.a, a, [&](Cell at, float value) { am[at.row * op.k + at.col] = value; });
  unpack(op, WmmaMatrix::b, op.b, b, [&](Cell at, float value) { bm[at.col * op.k + at.row] = value; });
  pack_a(padded, op.k, am, pa);
  pack_b(op.n, op.k, bm, pb);
  fragment_gemm(padded / 16, op.n, op.k, pa, pb, rows);
}

void load_c(const WmmaOp& op, const u32* const* c, Accumulators& acc) {
  const u32 e = wmma_elements(op.c, WmmaMatrix::c);
  for (u32 reg = 0; reg < wmma_registers(op, WmmaMatrix::c, op.c) * e; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const u32 bits = c[reg / e][lane];
      acc[kernel_register(op, reg)][lane] =
          e == 2 ? f16_to_f32(static_cast<u16>(bits >> (16 * (reg % 2)))) : std::bit_cast<float>(bits);
    }
  }
}

void store_d(const WmmaOp& op, const Accumulators& acc, const u32* const* c, u32* const* d) {
  const u32 e = wmma_elements(op.d, WmmaMatrix::c);
  for (u32 reg = 0; reg < wmma_registers(op, WmmaMatrix::c, op.d); ++reg) {
    const float* low = acc[kernel_register(op, e * reg)];
    const float* high = acc[kernel_register(op, e * reg + e - 1)];
    for (u32 lane = 0; lane < kLanes; ++lane) {
      if (op.d == Type::s32) {
        i64 sum = static_cast<i64>(low[lane]) + static_cast<i32>(c[reg][lane]);
        if (op.satfinite) {
          sum = std::clamp<i64>(sum, std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max());
        }
        d[reg][lane] = static_cast<u32>(sum);
      } else if (op.d == Type::f32) {
        d[reg][lane] = std::bit_cast<u32>(low[lane]);
      } else {
        d[reg][lane] = f32_to_f16(low[lane]) | u32{f32_to_f16(high[lane])} << 16;
      }
    }
  }
}

}  // namespace

std::string wmma_reason(const WmmaOp& op) {
  const std::string shape = "m" + std::to_string(op.m) + "n" + std::to_string(op.n) + "k" + std::to_string(op.k);
  const std::string name = "wmma " + shape + "." + type_name(op.d) + "." + type_name(op.a) + "." + type_name(op.b) +
                           "." + type_name(op.c);
  const bool wide = shape == "m16n16k16" || shape == "m8n32k16" || shape == "m32n8k16";
  const auto among = [](Type t, std::initializer_list<Type> list) {
    return std::find(list.begin(), list.end(), t) != list.end();
  };
  if (op.a != op.b) return name + ": the types of A and B differ";
  const bool integer = (wide && among(op.a, {Type::s8, Type::u8})) ||
                       (shape == "m8n8k32" && among(op.a, {Type::s4, Type::u4}));
  const bool bits = shape == "m8n8k128" && op.a == Type::b1;
  const bool narrow = (wide && op.a == Type::bf16) || (shape == "m16n16k8" && op.a == Type::tf32);
  const bool half = wide && op.a == Type::f16;
  const bool f64 = shape == "m8n8k4" && op.a == Type::f64;
  if (!integer && !bits && !narrow && !half && !f64) return name + ": sm_90a has no such shape";
  const Type result = f64 ? Type::f64 : narrow ? Type::f32 : Type::s32;
  const bool fits = half ? among(op.c, {Type::f16, Type::f32}) && among(op.d, {Type::f16, Type::f32})
                         : op.c == result && op.d == result;
  if (!fits) return name + ": no such accumulators";
  if (op.satfinite && !integer) return name + ": .satfinite needs integer operands";
  return {};
}

u32 wmma_elements(Type type, WmmaMatrix matrix) {
  if (matrix == WmmaMatrix::c) return type == Type::f16 ? 2 : 1;
  return per_register(type_bits(type));
}

u32 wmma_registers(const WmmaOp& op, WmmaMatrix matrix, Type type) {
  if (matrix != WmmaMatrix::c && type == Type::f16) return 8;
  return distinct(op, matrix, type);
}

Cell wmma_cell(const WmmaOp& op, WmmaMatrix matrix, Type type, u32 lane, u32 reg, u32 element) {
  const u32 within = reg % distinct(op, matrix, type), rows = std::min(op.m, 16u), bits = type_bits(type);
  if (matrix == WmmaMatrix::b) {
    const u32 tile = distinct(op, matrix, type) * 8 / op.n;  // registers of eight columns
    const Cell at = b_cell(bits, lane, within % tile, element);
    return {at.row, at.col + 8 * (within / tile)};
  }
  const u32 tile = distinct(op, matrix, type) * rows / op.m;  // registers of `rows` rows
  const Cell at = matrix == WmmaMatrix::a ? a_cell(bits, rows, lane, within % tile, element)
                  : type == Type::f16     ? c_cell_packed(rows, lane, within % tile, element)
                                          : c_cell(rows, lane, within % tile);
  return {at.row + 16 * (within / tile), at.col};
}

void wmma(const WmmaOp& op, const u32* const* a, const u32* const* b, const u32* const* c, u32* const* d) {
  if (op.a == Type::b1) {  // the one shape of mma.sync with the same fragments
    return mma({op.m, op.n, op.k, op.a, op.b, op.c, op.d, op.satfinite, op.xor_popc}, a, b, c, d);
  }
  Accumulators acc = {};
  float* rows[std::size(acc)];
  for (u32 i = 0; i < std::size(acc); ++i) rows[i] = acc[i];
  if (op.d != Type::s32) load_c(op, c, acc);
  multiply(op, a, b, rows);
  store_d(op, acc, c, d);
}

void wmma_f64(const WmmaOp& op, const double* const* a, const double* const* b, const double* const* c,
              double* const* d) {
  mma_f64({op.m, op.n, op.k, op.a, op.b, op.c, op.d, false, false, op.rounding}, a, b, c, d);
}

}  // namespace tkpy::emulator::tensor
