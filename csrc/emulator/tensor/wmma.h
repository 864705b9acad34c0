// wmma.load, wmma.mma, wmma.store of one warp (PTX ISA 9.7.14.4).
//
// The ISA leaves open which lane holds which element, and says that fragments may only be passed on whole or changed
// element by element alike. Here a fragment is made of mma.sync's: 16-row (or 8-row) tiles of A and C, 8-column tiles
// of B, one after the other; where the ISA gives f16 operands more registers than elements, they repeat.
// Arithmetic is mma.h's.
#pragma once

#include "fragments.h"

namespace tkpy::emulator::tensor {

struct WmmaOp {
  u32 m, n, k;
  Type a, b, c, d;
  bool satfinite = false;
  bool xor_popc = false;  // b1 only: .xor.popc; otherwise .and.popc
  u8 rounding = 0;         // f64 only: 0 .rn, 1 .rz, 2 .rm, 3 .rp
};

enum class WmmaMatrix : u8 { a, b, c };  // c also for d

// Why sm_90a has no such instruction; empty when it has.
std::string wmma_reason(const WmmaOp& op);

// Registers of a fragment: 64 bits wide for f64, else 32. `type` is the fragment's own (of A, B, C or D).
u32 wmma_registers(const WmmaOp& op, WmmaMatrix matrix, Type type);
u32 wmma_elements(Type type, WmmaMatrix matrix);  // in one register

// Row and column in the matrix (B: k, n). Elements of a register are packed from the lowest bits; those of s4, u4 and
// b1 are consecutive along K, so that a register is 32 contiguous bits of memory.
Cell wmma_cell(const WmmaOp& op, WmmaMatrix matrix, Type type, u32 lane, u32 reg, u32 element);

// Registers as in mma.h; d may be c.
void wmma(const WmmaOp& op, const u32* const* a, const u32* const* b, const u32* const* c, u32* const* d);
void wmma_f64(const WmmaOp& op, const double* const* a, const double* const* b, const double* const* c,
              double* const* d);

}  // namespace tkpy::emulator::tensor
