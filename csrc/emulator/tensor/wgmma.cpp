#include "wgmma.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "fragments.h"
#include "gemm.h"
#include "numbers.h"
#include "sparse.h"

namespace tkpy::emulator::tensor {

namespace {

constexpr u32 kRows = 64, kMaxN = 256, kMaxK = 32, kWarps = 4;

// Per host thread: too large for the stack of a deep call, too hot for the heap.
struct Scratch {
  u32 addresses[4 * kMaxN];  // of 16 bytes: a row of B has four where A is sparse, else two
  alignas(64) float a[kRows * kMaxK];
  alignas(64) float b[kMaxN * 2 * kMaxK];  // twice as much along K where A is sparse
  alignas(64) float packed_a[kRows * kMaxK * 4];
  alignas(64) float packed_b[kMaxN * kMaxK];
  alignas(64) float acc[kWarps * kMaxN / 2][kLanes];
  u32 bits_a[kRows][8], bits_b[kMaxN][8];
  float* rows[kWarps * kMaxN / 2];
};

Scratch& scratch() {
  static thread_local std::vector<Scratch> one(1);
  return one[0];
}

// Shared memory to a matrix [mn][k] of floats.
void gather(Type type, const Operand& operand, const SharedBytes& shared, const u32* addresses, float* matrix) {
  const u32 per_unit = 16 / operand.element_bytes, k = operand.units * per_unit;
  if (!operand.mn_major) {
    for (u32 i = 0; i < operand_units(operand); ++i) {
      widen_packed(type, shared.at(addresses[i]), per_unit, matrix + i * per_unit);
    }
    return;
  }
  const u32 blocks = operand.mn / 8;
  for (u32 i = 0; i < operand_units(operand); ++i) {
    float unit[8];
    widen_packed(type, shared.at(addresses[i]), 8, unit);
    float* to = matrix + std::size_t{i % blocks} * 8 * k + i / blocks;
    for (u32 e = 0; e < 8; ++e) to[e * k] = unit[e];
  }
}

void negate(float* values, u32 count) {
  for (u32 i = 0; i < count; ++i) values[i] = -values[i];
}

// Float accumulators of the whole warpgroup, before the product is added to them: D's own registers when they are f32.
void load_accumulators(const WgmmaOp& op, bool accumulate, u32* const* d, Scratch& s) {
  const u32 wide = op.n / 2, registers = wgmma_registers(op);
  for (u32 i = 0; i < kWarps * wide; ++i) {
    s.rows[i] = op.d == Type::f32 ? reinterpret_cast<float*>(d[i]) : s.acc[i];
    const bool starts_at_zero = !accumulate || op.d == Type::s32;  // integers are added after the product
    if (starts_at_zero) std::memset(s.rows[i], 0, sizeof s.acc[i]);
    if (starts_at_zero || op.d == Type::f32) continue;
    const u32 warp = i / wide, reg = i % wide;
    const u32* packed = d[warp * registers + reg / 2];
    for (u32 lane = 0; lane < kLanes; ++lane) {
      s.acc[i][lane] = f16_to_f32(static_cast<u16>(packed[lane] >> (16 * (reg % 2))));
    }
  }
}

void store_integers(const WgmmaOp& op, bool accumulate, const Scratch& s, u32* const* d) {
  for (u32 i = 0; i < kWarps * op.n / 2; ++i) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      i64 sum = static_cast<i64>(s.acc[i][lane]);
      if (accumulate) sum += static_cast<i32>(d[i][lane]);
      if (op.satfinite) {
        sum = std::clamp<i64>(sum, std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max());
      }
      d[i][lane] = static_cast<u32>(sum);
    }
  }
}

void store_accumulators(const WgmmaOp& op, bool accumulate, const Scratch& s, u32* const* d) {
  if (op.d == Type::f32) return;
  if (op.d == Type::s32) return store_integers(op, accumulate, s, d);
  for (u32 i = 0; i < kWarps * wgmma_registers(op); ++i) {
    const float *even = s.acc[2 * i], *odd = s.acc[2 * i + 1];
    for (u32 lane = 0; lane < kLanes; ++lane) d[i][lane] = f32_to_f16(even[lane]) | u32{f32_to_f16(odd[lane])} << 16;
  }
}

void multiply_bits(const WgmmaOp& op, Scratch& s) {
  for (u32 i = 0; i < kWarps * op.n / 2; ++i) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const Cell at = wgmma_d_cell(i / (op.n / 2), lane, i % (op.n / 2));
      int sum = 0;
      for (u32 w = 0; w < 8; ++w) sum += std::popcount(s.bits_a[at.row][w] & s.bits_b[at.col][w]);
      s.acc[i][lane] = static_cast<float>(sum);
    }
  }
}

// Only what A stores is multiplied (see mma.cpp).
void multiply_sparse(const WgmmaOp& op, const u32* const* metadata, Scratch& s) {
  const u32 k = wgmma_k(op), stored = k / 2;
  const SparseA sparse{op.a, k, op.selector};
  std::vector<u32> columns(kRows * stored);
  for (u32 row = 0; row < kRows; ++row)
    for (u32 i = 0; i < stored; ++i) columns[row * stored + i] = sparse_column(sparse, metadata[row / 16], row % 16, i);
  for (u32 i = 0; i < kWarps * op.n / 2; ++i) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const Cell at = wgmma_d_cell(i / (op.n / 2), lane, i % (op.n / 2));
      const float *a = s.a + at.row * stored, *b = s.b + at.col * k;
      float sum = s.rows[i][lane];
      for (u32 j = 0; j < stored; ++j) sum = std::fma(a[j], b[columns[at.row * stored + j]], sum);
      s.rows[i][lane] = sum;
    }
  }
}

// Text: outside shared memory. `matrix` is filled, or `bits` for b1.
std::string read_shared(Type type, const Operand& operand, const SharedBytes& shared, u64 descriptor, Scratch& s,
                        float* matrix, u32 (*bits)[8]) {
  const MatrixDescriptor at = decode_descriptor(descriptor);
  const u32 units = operand_units(operand);
  operand_addresses(at, operand, s.addresses);
  for (u32 i = 0; i < units; ++i) {
    if (!shared.holds(s.addresses[i], 16)) return operand_out_of_bounds(at, operand, shared);
  }
  if (type != Type::b1) {
    gather(type, operand, shared, s.addresses, matrix);
    return {};
  }
  for (u32 i = 0; i < units; ++i) std::memcpy(&bits[i / 2][i % 2 * 4], shared.at(s.addresses[i]), 16);
  return {};
}

void read_registers(Type type, const u32* const* from, Scratch& s) {
  const u32 bits = type_bits(type), e = per_register(bits), k = 256 / bits;
  float wide[kLanes * 4];
  for (u32 i = 0; i < 4 * kWarps; ++i) {
    if (type != Type::b1) widen_packed(type, reinterpret_cast<const u8*>(from[i]), kLanes * e, wide);
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const Cell at = wgmma_a_cell(bits, i / 4, lane, i % 4, 0);
      if (type == Type::b1) {
        s.bits_a[at.row][at.col / 32] = from[i][lane];
      } else {
        std::memcpy(s.a + at.row * k + at.col, wide + lane * e, e * sizeof(float));
      }
    }
  }
}

}  // namespace

Operand wgmma_operand_a(const WgmmaOp& op) { return {kRows, std::max(1u, type_bits(op.a) / 8), op.transpose_a}; }
Operand wgmma_operand_b(const WgmmaOp& op) { return {op.n, std::max(1u, type_bits(op.b) / 8), op.transpose_b, op.sparse ? 4u : 2u}; }

std::string wgmma_reason(const WgmmaOp& op) {
  const auto is = [](Type t, std::initializer_list<Type> list) {
    return std::find(list.begin(), list.end(), t) != list.end();
  };
  const std::string types = std::string(type_name(op.d)) + "." + type_name(op.a) + "." + type_name(op.b);
  const bool half = op.a == op.b && is(op.a, {Type::f16, Type::bf16});
  const bool fp8 = is(op.a, {Type::e4m3, Type::e5m2}) && is(op.b, {Type::e4m3, Type::e5m2});
  const bool tf32 = op.a == Type::tf32 && op.b == Type::tf32;
  const bool bytes = is(op.a, {Type::s8, Type::u8}) && is(op.b, {Type::s8, Type::u8});
  const bool integers = bytes || (op.a == Type::b1 && op.b == Type::b1);
  if (!half && !fp8 && !tf32 && !integers) return "wgmma has no operands " + types;
  const bool half_result = op.d == Type::f16 && (op.a == Type::f16 || fp8);
  if (integers ? op.d != Type::s32 : (op.d != Type::f32 && !half_result)) return "wgmma has no accumulators " + types;
  if (op.n < 8 || op.n > kMaxN || op.n % 8) {
    return "n must be a multiple of 8 from 8 to 256, got " + std::to_string(op.n);
  }
  if (integers && op.n != 8 && op.n != 24 && op.n % 16) {
    return "n of integer wgmma must be 8, 24 or a multiple of 16, got " + std::to_string(op.n);
  }
  if ((op.transpose_a || op.transpose_b) && !half) return "only f16 and bf16 operands can be transposed";
  if (op.transpose_a && op.a_in_registers) return "A in registers cannot be transposed";
  if ((op.negate_a || op.negate_b) && integers) return "integer wgmma has no imm-scale";
  if (op.sparse && (op.a == Type::b1 || op.selector >= sparse_selectors(op.a, wgmma_k(op))))
    return "no such sparsity selector: " + std::to_string(op.selector);
  if (op.satfinite && !bytes) return ".satfinite needs s8 or u8 operands";
  return {};
}

std::string wgmma(const WgmmaOp& op, const SharedBytes& shared, const u32* const* a, u64 a_descriptor,
                  u64 b_descriptor, bool accumulate, u32* const* d, const u32* const* metadata, Sums sums) {
  Scratch& s = scratch();
  if (op.a_in_registers) {
    read_registers(op.a, a, s);
  } else {
    const std::string outside = read_shared(op.a, wgmma_operand_a(op), shared, a_descriptor, s, s.a, s.bits_a);
    if (!outside.empty()) return "operand A: " + outside;
  }
  const std::string outside = read_shared(op.b, wgmma_operand_b(op), shared, b_descriptor, s, s.b, s.bits_b);
  if (!outside.empty()) return "operand B: " + outside;

  load_accumulators(op, accumulate, d, s);
  if (op.a == Type::b1) {
    multiply_bits(op, s);
  } else {
    const u32 k = 256 / type_bits(op.a);  // as A is stored
    if (op.negate_a != op.negate_b) negate(s.a, kRows * k);
    if (op.sparse) {
      multiply_sparse(op, metadata, s);
      store_accumulators(op, accumulate, s, d);
      return {};
    }
    pack_a(kRows, k, s.a, s.packed_a);
    pack_b(op.n, k, s.b, s.packed_b);
    fragment_gemm(kWarps, op.n, k, s.packed_a, s.packed_b, s.rows, bits_kept(sums, op.a));
  }
  store_accumulators(op, accumulate, s, d);
  return {};
}

}  // namespace tkpy::emulator::tensor
