// D += A B with D left in register-fragment order, so that accumulators are never transposed.
#pragma once

#include "../common.h"

namespace tkpy::emulator::tensor {

// A as [warps][row half 2][row pair 4][k][8 lanes]: lanes 0..3 hold the even row of the pair, 4..7 the odd one, i.e.
// what the eight lanes 8 q .. 8 q + 7 of a warp need. `a` is row-major with `rows` = 16 * warps rows of k floats.
void pack_a(u32 rows, u32 k, const float* a, float* packed);

// B as [n / 8][column parity 2][k][4]: the columns 8 j + 2 t + parity that t = lane % 4 needs. `b` is [n][k].
void pack_b(u32 n, u32 k, const float* b, float* packed);

// How sums are rounded. The ISA leaves order and width open (9.7.15.5.2, "at least single precision"); products of the narrow
// types are exact in f32 up to range, so that only the sums can differ from a GPU.
//   fused    acc = fma(a[k], b[k], acc) for k ascending: to nearest even at every step, subnormals kept
//   hopper   what an H100 does (F. A. Khattak, M. Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv 2512.07004: its
//            model of the H100 is exact to the bit): the accumulator and the products of one instruction are cut off so many
//            bits below the leading one of the largest of them, added exactly, and the sum is cut off to 24 bits
enum class Sums : u8 { fused, hopper };

// Those bits for operands of a type: 0 where sums are fused, or of integers and exact.
constexpr u32 bits_kept(Sums sums, Type operands) {
  if (sums == Sums::fused) return 0;
  switch (operands) {
    case Type::e4m3: case Type::e5m2: return 13;
    case Type::f16: case Type::bf16: case Type::tf32: return 25;
    default: return 0;
  }
}

// d[w * n / 2 + reg] points at the 32 lanes of accumulator `reg` of warp w (fragments.h: c_cell(16, ..)). `kept`: bits_kept. Terms
// that are cut off are multiples of 2^-126 at least.
void fragment_gemm(u32 warps, u32 n, u32 k, const float* packed_a, const float* packed_b, float* const* d, u32 kept = 0);

// The same bits on any host; fragment_gemm takes it where there is no AVX2.
void fragment_gemm_portable(u32 warps, u32 n, u32 k, const float* packed_a, const float* packed_b, float* const* d);

}  // namespace tkpy::emulator::tensor
