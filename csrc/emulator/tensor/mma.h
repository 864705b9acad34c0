// mma.sync: D = A B + C of one warp, on registers (PTX ISA 9.7.14.5.14).
//
// f32 accumulators follow gemm.h; f16 ones are summed in f32 and rounded once, at the end. Integers are exact; the sum
// wraps, or with .satfinite is clamped to s32 once. tf32 operands lose their low 13 bits.
#pragma once

#include "../common.h"
#include "gemm.h"

namespace tkpy::emulator::tensor {

struct MmaOp {
  u32 m, n, k;
  Type a, b, c, d;  // c and d alike
  bool satfinite = false;
  bool xor_popc = false;  // b1 only: .xor.popc; otherwise .and.popc
  u8 rounding = 0;         // f64 only: 0 .rn, 1 .rz, 2 .rm, 3 .rp
  bool sparse = false;     // mma.sp: A holds half of its k columns, sparse.h
  u8 selector = 0;
};

// Why sm_90a has no such instruction; empty when it has.
std::string mma_reason(const MmaOp& op);

struct MmaRegisters {
  u32 a, b, c;
};
MmaRegisters mma_registers(const MmaOp& op);

// a[reg], b[reg], c[reg], d[reg] each point at 32 lanes, and so does metadata of a sparse one; d may be c. Type::none is no
// matrix: call mma_reason first.
void mma(const MmaOp& op, const u32* const* a, const u32* const* b, const u32* const* c, u32* const* d,
         const u32* metadata = nullptr, Sums sums = Sums::fused);

// m8n8k4 of f16 (PTX ISA 9.7.14.5.1): four products, each by a quad pair, lanes 4q .. 4q + 3 and those 16 further. Other than in
// the larger shapes A and B have a layout each, and C of f16 may be added to D of f32.
struct QuadPairs {
  bool a_col = false, b_row = false;
  bool c_f32 = false, d_f32 = false;
  u32 registers_c() const { return c_f32 ? 8 : 4; }
  u32 registers_d() const { return d_f32 ? 8 : 4; }
};
void mma_quad_pairs(const QuadPairs& op, const u32* const* a, const u32* const* b, const u32* const* c, u32* const* d);

// f64, whose registers are 64 bits wide; fused multiply-adds, k ascending.
void mma_f64(const MmaOp& op, const double* const* a, const double* const* b, const double* const* c,
             double* const* d);

}  // namespace tkpy::emulator::tensor
