// wgmma.mma_async: D = A B + D of one warpgroup (PTX ISA 9.7.15.5.2).
//
// f32 accumulation is gemm.h's, in one of two ways (sparse products: fused); f16 accumulators are summed in f32 and rounded
// once an instruction; s32 is exact and wraps, or is clamped once with .satfinite.
#pragma once

#include "descriptor.h"
#include "gemm.h"

namespace tkpy::emulator::tensor {

struct WgmmaOp {
  u32 n = 8;
  Type a = Type::bf16, b = Type::bf16, d = Type::f32;
  bool a_in_registers = false;
  bool transpose_a = false, transpose_b = false;  // imm-trans: M- or N-major
  bool negate_a = false, negate_b = false;        // imm-scale of -1
  bool satfinite = false;
  bool sparse = false;  // wgmma.mma_async.sp: A holds half of the k columns, sparse.h
  u8 selector = 0;
};

inline u32 wgmma_k(const WgmmaOp& op) { return (op.sparse ? 512 : 256) / type_bits(op.a); }
// Accumulator registers of one thread.
inline u32 wgmma_registers(const WgmmaOp& op) { return op.d == Type::f16 ? op.n / 4 : op.n / 2; }
Operand wgmma_operand_a(const WgmmaOp& op);
Operand wgmma_operand_b(const WgmmaOp& op);

// Why sm_90a has no such instruction; empty when it has.
std::string wgmma_reason(const WgmmaOp& op);

// d[w * registers + i] points at the 32 lanes of accumulator i of warp w; a likewise, with four registers a warp, and
// only read when op.a_in_registers; metadata of a sparse one are one register a warp. With accumulate false the old D is not read. Text: an operand lies outside shared
// memory, and nothing was written.
std::string wgmma(const WgmmaOp& op, const SharedBytes& shared, const u32* const* a, u64 a_descriptor,
                  u64 b_descriptor, bool accumulate, u32* const* d,
                  const u32* const* metadata = nullptr, Sums sums = Sums::fused);

}  // namespace tkpy::emulator::tensor
