// What the decoder asks of the lane arithmetic. alu_*.cpp are compiled twice, for any x86-64 and for x86-64-v3 (AVX2);
// pick() chooses once per instruction, when the module is loaded.
#pragma once

#include "program.h"

namespace tkpy::emulator {

enum class Alu : u8 {
  mov, add, sub, mul_lo, mul_hi, mul_wide, mad_lo, mad_hi, mad_wide, mul24_lo, mul24_hi, mad24_lo, mad24_hi, sad,
  div, rem, abs, neg, min, max, and_, or_, xor_, not_, cnot, shl, shr, bfe, bfi, bfind, bfind_shift, popc, clz, brev,
  lop3, prmt, shf_l, shf_r, dp4a, dp2a, szext, bmsk, fns, slct,
  fma, rcp, sqrt, rsqrt, sin, cos, ex2, lg2, tanh, copysign, testp, setp, set, selp, cvt, cvt_pack, cvt_pack_integers,
  pred_and, pred_or, pred_xor, pred_not, pred_mov, unpack, pack,
};

// Rounding of a result: to nearest even, to zero, down, up, to nearest away; `odd` serves double rounding.
enum Round : u8 { kRn = 0, kRz = 1, kRm = 2, kRp = 3, kRna = 4 };

// Op::b of arithmetic: modifiers that select among the general handlers' paths.
enum AluFlag : u8 {
  kFtz = 1, kSat = 2, kRelu = 4, kNan = 8, kApprox = 64, kFull = 128,
  kCarryIn = 16, kCarryOut = 32,   // of integers
  kXorSign = 16, kOutOfBounds = 32,  // of floats: .xorsign.abs, .oob
};

struct AluKey {
  Alu op = Alu::mov;
  Type type = Type::none;   // of the result, where they differ
  Type from = Type::none;   // of the source
  Round round = kRn;
  u8 flags = 0;
  bool integral = false;    // cvt.r?i
  bool satfinite = false;
  bool clamp = false;       // shf, szext, bmsk
  Cmp cmp = Cmp::eq;
  u8 combine = 0;           // setp: 0 none, 1 and, 2 or, 3 xor
};

namespace base {
ExecFn pick_integer(const AluKey& key);
ExecFn pick_float(const AluKey& key);
ExecFn pick_compare(const AluKey& key);
ExecFn pick_convert(const AluKey& key);
}  // namespace base
namespace v3 {
ExecFn pick_integer(const AluKey& key);
ExecFn pick_float(const AluKey& key);
ExecFn pick_compare(const AluKey& key);
ExecFn pick_convert(const AluKey& key);
}  // namespace v3

// nullptr: not modelled.
ExecFn pick_alu(const AluKey& key);
bool cpu_has_v3();

}  // namespace tkpy::emulator
