// D += A B with D left in register-fragment order, so that accumulators are never transposed.
#pragma once

#include "../common.h"

namespace tkpy::emulator::tensor {

// A as [warps][row half 2][row pair 4][k][8 lanes]: lanes 0..3 hold the even row of the pair, 4..7 the odd one, i.e.
// what the eight lanes 8 q .. 8 q + 7 of a warp need. `a` is row-major with `rows` = 16 * warps rows of k floats.
void pack_a(u32 rows, u32 k, const float* a, float* packed);

// B as [n / 8][column parity 2][k][4]: the columns 8 j + 2 t + parity that t = lane % 4 needs. `b` is [n][k].
void pack_b(u32 n, u32 k, const float* b, float* packed);

// d[w * n / 2 + reg] points at the 32 lanes of accumulator `reg` of warp w (fragments.h: c_cell(16, ..)). Each element
// is acc = fma(a[k], b[k], acc) for k ascending: one rounding to nearest even a step, subnormals kept. The hardware's
// order and internal width are not specified (PTX ISA 9.7.15.5.2, "at least single precision"); products of the
// narrow types are exact in f32 up to range, so only the order and rounding of the sums can differ from a GPU.
void fragment_gemm(u32 warps, u32 n, u32 k, const float* packed_a, const float* packed_b, float* const* d);

// The same bits on any host; fragment_gemm takes it where there is no AVX2.
void fragment_gemm_portable(u32 warps, u32 n, u32 k, const float* packed_a, const float* packed_b, float* const* d);

}  // namespace tkpy::emulator::tensor
