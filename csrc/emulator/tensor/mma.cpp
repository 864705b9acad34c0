#include "mma.h"

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <limits>
#include <span>

#include "fragments.h"
#include "gemm.h"
#include "numbers.h"
#include "sparse.h"

namespace tkpy::emulator::tensor {

namespace {

constexpr u32 kMaxK = 64;

bool is_fp8(Type t) { return t == Type::e4m3 || t == Type::e5m2; }
bool is_8bit(Type t) { return t == Type::s8 || t == Type::u8; }
bool is_4bit(Type t) { return t == Type::s4 || t == Type::u4; }

struct ShapeRow {
  u32 m, k;
  bool (*operand)(Type);
  bool half_result;  // also with f16 accumulators
  Type result;
};

// n is 8 in all of them. The first-generation m8n8k4 of f16 is mma_quad_pairs.
constexpr ShapeRow kShapes[] = {
    {16, 8, [](Type t) { return t == Type::f16; }, true, Type::f32},
    {16, 16, [](Type t) { return t == Type::f16; }, true, Type::f32},
    {16, 8, [](Type t) { return t == Type::bf16; }, false, Type::f32},
    {16, 16, [](Type t) { return t == Type::bf16; }, false, Type::f32},
    {16, 4, [](Type t) { return t == Type::tf32; }, false, Type::f32},
    {16, 8, [](Type t) { return t == Type::tf32; }, false, Type::f32},
    {16, 16, is_fp8, true, Type::f32},
    {16, 32, is_fp8, true, Type::f32},
    {8, 16, is_8bit, false, Type::s32},
    {16, 16, is_8bit, false, Type::s32},
    {16, 32, is_8bit, false, Type::s32},
    {8, 32, is_4bit, false, Type::s32},
    {16, 32, is_4bit, false, Type::s32},
    {16, 64, is_4bit, false, Type::s32},
    {8, 128, [](Type t) { return t == Type::b1; }, false, Type::s32},
    {16, 128, [](Type t) { return t == Type::b1; }, false, Type::s32},
    {16, 256, [](Type t) { return t == Type::b1; }, false, Type::s32},
    {8, 4, [](Type t) { return t == Type::f64; }, false, Type::f64},
    {16, 4, [](Type t) { return t == Type::f64; }, false, Type::f64},
    {16, 8, [](Type t) { return t == Type::f64; }, false, Type::f64},
    {16, 16, [](Type t) { return t == Type::f64; }, false, Type::f64},
};

constexpr ShapeRow kSparseShapes[] = {
    {16, 16, [](Type t) { return t == Type::f16; }, true, Type::f32},
    {16, 32, [](Type t) { return t == Type::f16; }, true, Type::f32},
    {16, 16, [](Type t) { return t == Type::bf16; }, false, Type::f32},
    {16, 32, [](Type t) { return t == Type::bf16; }, false, Type::f32},
    {16, 8, [](Type t) { return t == Type::tf32; }, false, Type::f32},
    {16, 16, [](Type t) { return t == Type::tf32; }, false, Type::f32},
    {16, 64, is_fp8, false, Type::f32},
    {16, 32, is_8bit, false, Type::s32},
    {16, 64, is_8bit, false, Type::s32},
    {16, 64, is_4bit, false, Type::s32},
    {16, 128, is_4bit, false, Type::s32},
};

// Registers of A or B straight into the order of gemm.h (pack_a, pack_b): this is the inner loop of mma.sync.
template <u32 e, class Put>
void spread(u32 halves, u32 registers, const float* wide, Put&& put) {
  for (u32 reg = 0; reg < registers; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const u32 row = lane / 4 + 8 * (reg % halves), first = (reg / halves * 4 + lane % 4) * e;
      for (u32 i = 0; i < e; ++i) put(row, first + i, wide[(reg * kLanes + lane) * e + i]);
    }
  }
}

template <class Put>
void unpack(Type type, u32 halves, u32 registers, const u32* const* from, Put&& put) {
  const u32 e = per_register(type_bits(type));
  float wide[4 * kLanes * 8];
  for (u32 reg = 0; reg < registers; ++reg) {
    widen_packed(type, reinterpret_cast<const u8*>(from[reg]), kLanes * e, wide + reg * kLanes * e);
  }
  switch (e) {
    case 1: return spread<1>(halves, registers, wide, put);
    case 2: return spread<2>(halves, registers, wide, put);
    case 4: return spread<4>(halves, registers, wide, put);
    default: return spread<8>(halves, registers, wide, put);
  }
}

// Words of 32 bits along k: [row][word].
void unpack_bits(u32 halves, u32 registers, const u32* const* from, u32 (*matrix)[8]) {
  for (u32 reg = 0; reg < registers; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      matrix[lane / 4 + 8 * (reg % halves)][reg / halves * 4 + lane % 4] = from[reg][lane];
    }
  }
}

using Accumulators = float[4][kLanes];

void multiply_dense(const MmaOp& op, const u32* const* a, const u32* const* b, Accumulators& acc, Sums sums) {
  alignas(32) float pa[16 * kMaxK * 4], pb[8 * kMaxK];
  const u32 k = op.k, halves = op.m / 8;
  const MmaRegisters count = mma_registers(op);
  if (halves == 1) std::memset(pa + k * 32, 0, k * 32 * sizeof(float));  // rows 8..15 do not exist
  unpack(op.a, halves, count.a, a, [&](u32 row, u32 i, float value) {
    float* to = pa + (row / 2 * k + i) * 8 + row % 2 * 4;
    to[0] = to[1] = to[2] = to[3] = value;
  });
  unpack(op.b, 1, count.b, b, [&](u32 col, u32 i, float value) { pb[(col % 2 * k + i) * 4 + col / 2] = value; });
  float* rows[4] = {acc[0], acc[1], acc[2], acc[3]};
  fragment_gemm(1, 8, k, pa, pb, rows, bits_kept(sums, op.a));
}

// Only what A stores is multiplied: a NaN of B that metadata do not choose does no harm.
void multiply_sparse(const MmaOp& op, const u32* const* a, const u32* const* b, const u32* metadata, Accumulators& acc) {
  float am[16][kMaxK], bm[8][2 * kMaxK];
  const MmaRegisters count = mma_registers(op);
  unpack(op.a, 2, count.a, a, [&](u32 row, u32 i, float value) { am[row][i] = value; });
  unpack(op.b, 1, count.b, b, [&](u32 col, u32 i, float value) { bm[col][i] = value; });
  const SparseA sparse{op.a, op.k, op.selector};
  u32 columns[16][kMaxK];
  for (u32 row = 0; row < 16; ++row)
    for (u32 i = 0; i < op.k / 2; ++i) columns[row][i] = sparse_column(sparse, metadata, row, i);
  for (u32 reg = 0; reg < 4; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const Cell at = c_cell(16, lane, reg);
      float sum = acc[reg][lane];
      for (u32 i = 0; i < op.k / 2; ++i) sum = std::fma(am[at.row][i], bm[at.col][columns[at.row][i]], sum);
      acc[reg][lane] = sum;
    }
  }
}

void multiply_bits(const MmaOp& op, const u32* const* a, const u32* const* b, Accumulators& acc) {
  u32 am[16][8] = {}, bm[8][8] = {};
  const MmaRegisters count = mma_registers(op);
  unpack_bits(op.m / 8, count.a, a, am);
  unpack_bits(1, count.b, b, bm);
  for (u32 reg = 0; reg < count.c; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const Cell at = c_cell(op.m, lane, reg);
      int sum = 0;
      for (u32 w = 0; w < op.k / 32; ++w) {
        const u32 x = am[at.row][w], y = bm[at.col][w];
        sum += std::popcount(op.xor_popc ? x ^ y : x & y);
      }
      acc[reg][lane] = static_cast<float>(sum);
    }
  }
}

void add_integers(const MmaOp& op, u32 registers, const Accumulators& acc, const u32* const* c, u32* const* d) {
  for (u32 reg = 0; reg < registers; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      i64 sum = static_cast<i64>(acc[reg][lane]) + static_cast<i32>(c[reg][lane]);
      if (op.satfinite) {
        sum = std::clamp<i64>(sum, std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max());
      }
      d[reg][lane] = static_cast<u32>(sum);
    }
  }
}

}  // namespace

std::string mma_reason(const MmaOp& op) {
  const std::string name = std::string(op.sparse ? "mma.sp m" : "mma.sync m") + std::to_string(op.m) + "n" + std::to_string(op.n) + "k" +
                           std::to_string(op.k) + "." + type_name(op.d) + "." + type_name(op.a) + "." +
                           type_name(op.b) + "." + type_name(op.c);
  if (op.c != op.d) return name + ": the types of C and D differ";
  const std::span<const ShapeRow> shapes = op.sparse ? std::span<const ShapeRow>(kSparseShapes) : kShapes;
  for (const ShapeRow& row : shapes) {
    if (op.n != 8 || row.m != op.m || row.k != op.k || !row.operand(op.a) || !row.operand(op.b)) continue;
    if (op.d != row.result && !(row.half_result && op.d == Type::f16)) continue;
    const bool clamps = row.result == Type::s32 && op.a != Type::b1;
    if (op.satfinite && !clamps) return name + ": .satfinite needs integer operands";
    if (op.sparse && op.selector >= sparse_selectors(op.a, op.k))
      return name + ": the sparsity selector must be below " + std::to_string(sparse_selectors(op.a, op.k)) + ", got " + std::to_string(op.selector);
    return {};
  }
  return name + ": sm_90a has no such shape";
}

MmaRegisters mma_registers(const MmaOp& op) {
  const u32 lane_bits = type_bits(op.a) == 64 ? 64 : 32;
  const u32 c_bits = op.d == Type::f16 ? 2 : 1;
  const u32 stored = op.sparse ? op.k / 2 : op.k;
  return {op.m * stored * type_bits(op.a) / (kLanes * lane_bits), op.n * op.k * type_bits(op.b) / (kLanes * lane_bits),
          op.m * op.n / kLanes / c_bits};
}

void mma(const MmaOp& op, const u32* const* a, const u32* const* b, const u32* const* c, u32* const* d,
         const u32* metadata, Sums sums) {
  const u32 registers = mma_registers(op).c;
  const auto multiply = [&](Accumulators& into) {
    op.sparse ? multiply_sparse(op, a, b, metadata, into) : multiply_dense(op, a, b, into, sums);
  };
  Accumulators acc = {};
  if (op.d == Type::s32) {
    if (op.a == Type::b1) {
      multiply_bits(op, a, b, acc);
    } else {
      multiply(acc);  // at most 32 * 255 * 255 < 2^24: exact in f32
    }
    return add_integers(op, registers, acc, c, d);
  }
  if (op.d == Type::f32) {
    for (u32 reg = 0; reg < registers; ++reg) std::memcpy(acc[reg], c[reg], sizeof acc[reg]);
    multiply(acc);
    for (u32 reg = 0; reg < registers; ++reg) std::memcpy(d[reg], acc[reg], sizeof acc[reg]);
    return;
  }
  for (u32 reg = 0; reg < 2 * registers; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      acc[reg][lane] = f16_to_f32(static_cast<u16>(c[reg / 2][lane] >> (16 * (reg % 2))));
    }
  }
  multiply(acc);
  for (u32 reg = 0; reg < registers; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      d[reg][lane] = f32_to_f16(acc[2 * reg][lane]) | u32{f32_to_f16(acc[2 * reg + 1][lane])} << 16;
    }
  }
}

namespace {

float half_at(const u32* const* registers, u32 lane, u32 i) {
  return f16_to_f32(static_cast<u16>(registers[i / 2][lane] >> (16 * (i % 2))));
}

// Element i of a lane's fragment of C or D, within its quad pair's 8 x 8.
Cell quad_pair_cell(bool f32, u32 lane, u32 i) {
  const u32 below = lane < 16 ? 0 : 4;
  if (!f32) return {lane % 4 + below, i};
  return {(lane & 1) + (i & 2) + below, (i & 4) + (lane & 2) + (i & 1)};
}

}  // namespace

void mma_quad_pairs(const QuadPairs& op, const u32* const* a, const u32* const* b, const u32* const* c, u32* const* d) {
  float am[4][8][4], bm[4][4][8], cm[4][8][8];
  for (u32 lane = 0; lane < kLanes; ++lane) {
    const u32 quad = lane / 4 % 4, t = lane % 4, high = lane < 16 ? 0 : 4;
    for (u32 i = 0; i < 4; ++i) {
      (op.a_col ? am[quad][i + high][t] : am[quad][t + high][i]) = half_at(a, lane, i);
      (op.b_row ? bm[quad][t][i + high] : bm[quad][i][t + high]) = half_at(b, lane, i);
    }
    for (u32 i = 0; i < 8; ++i) {
      const Cell at = quad_pair_cell(op.c_f32, lane, i);
      cm[quad][at.row][at.col] = op.c_f32 ? std::bit_cast<float>(c[i][lane]) : half_at(c, lane, i);
    }
  }
  for (u32 lane = 0; lane < kLanes; ++lane) {
    const u32 quad = lane / 4 % 4;
    float sums[8];
    for (u32 i = 0; i < 8; ++i) {
      const Cell at = quad_pair_cell(op.d_f32, lane, i);
      sums[i] = cm[quad][at.row][at.col];
      for (u32 k = 0; k < 4; ++k) sums[i] = std::fma(am[quad][at.row][k], bm[quad][k][at.col], sums[i]);
    }
    for (u32 i = 0; i < op.registers_d(); ++i) {
      d[i][lane] = op.d_f32 ? std::bit_cast<u32>(sums[i]) : f32_to_f16(sums[2 * i]) | u32{f32_to_f16(sums[2 * i + 1])} << 16;
    }
  }
}

void mma_f64(const MmaOp& op, const double* const* a, const double* const* b, const double* const* c,
             double* const* d) {
  const u32 registers = mma_registers(op).c;
  double out[4][kLanes];
  static constexpr int kHost[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  const int before = std::fegetround();
  std::fesetround(kHost[op.rounding]);
  for (u32 reg = 0; reg < registers; ++reg) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const Cell at = c_cell(op.m, lane, reg);
      volatile double sum = c[reg][lane];  // volatile: kept between the changes of rounding
      for (u32 k = 0; k < op.k; ++k) {
        const Place x = a_place(64, op.m, at.row, k), y = b_place(64, k, at.col);
        sum = std::fma(a[x.reg][x.lane], b[y.reg][y.lane], sum);
      }
      out[reg][lane] = sum;
    }
  }
  std::fesetround(before);
  for (u32 reg = 0; reg < registers; ++reg) std::memcpy(d[reg], out[reg], sizeof out[reg]);
}

}  // namespace tkpy::emulator::tensor
