// Which (row, column) of a matrix each register element of each lane holds.
//
// All of mma.sync (PTX ISA 9.7.14.5, "Matrix Fragments for mma.m*"), ldmatrix/stmatrix (9.7.14.5.15 ff.) and wgmma
// (9.7.15.5, "Register Fragments") is built from one piece, the 8 x 16-byte core matrix: lane = 4 g + t holds the t-th
// 4 bytes of row g. Operand A stacks two of them along M (registers 0, 1), then along K; B stacks them along K. With
// 64-bit elements the piece is 8 x 4 elements and a register holds one element, so the same formulas hold.
// B is given as (k, n); element 0 is in the low bits of its register.
#pragma once

#include "../common.h"

namespace tkpy::emulator::tensor {

struct Cell {
  u32 row, col;
  constexpr bool operator==(const Cell&) const = default;
};

struct Place {
  u32 lane, reg, element;
  constexpr bool operator==(const Place&) const = default;
};

// Elements in one A or B register: registers are 32 bits wide, or 64 for f64.
constexpr u32 per_register(u32 bits) { return bits >= 32 ? 1 : 32 / bits; }

constexpr Cell a_cell(u32 bits, u32 m, u32 lane, u32 reg, u32 element) {
  const u32 e = per_register(bits), halves = m / 8;
  return {lane / 4 + 8 * (reg % halves), (reg / halves * 4 + lane % 4) * e + element};
}

constexpr Place a_place(u32 bits, u32 m, u32 row, u32 col) {
  const u32 e = per_register(bits), halves = m / 8;
  return {row % 8 * 4 + col / e % 4, col / (4 * e) * halves + row / 8, col % e};
}

constexpr Cell b_cell(u32 bits, u32 lane, u32 reg, u32 element) {
  const u32 e = per_register(bits);
  return {(reg * 4 + lane % 4) * e + element, lane / 4};
}

constexpr Place b_place(u32 bits, u32 row, u32 col) {
  const u32 e = per_register(bits);
  return {col % 8 * 4 + row / e % 4, row / (4 * e), row % e};
}

// C and D with one element a register (f32, s32, f64). Eight columns at a time, so this is also the accumulator of
// wgmma within its warp's 16 rows. m is 8 or 16.
constexpr Cell c_cell(u32 m, u32 lane, u32 reg) {
  const u32 halves = m / 8;
  return {lane / 4 + 8 * (reg / 2 % halves), reg / (2 * halves) * 8 + 2 * (lane % 4) + reg % 2};
}

constexpr Place c_place(u32 m, u32 row, u32 col) {
  const u32 halves = m / 8;
  return {row % 8 * 4 + col % 8 / 2, (col / 8 * halves + row / 8) * 2 + col % 2, 0};
}

// C and D of f16: the two neighbouring columns share a register.
constexpr Cell c_cell_packed(u32 m, u32 lane, u32 reg, u32 element) { return c_cell(m, lane, 2 * reg + element); }

constexpr Place c_place_packed(u32 m, u32 row, u32 col) {
  const Place p = c_place(m, row, col);
  return {p.lane, p.reg / 2, p.reg % 2};
}

// wgmma: warp w of the warpgroup owns rows 16 w .. 16 w + 15 of A (in registers) and of D.
constexpr Cell wgmma_a_cell(u32 bits, u32 warp, u32 lane, u32 reg, u32 element) {
  const Cell c = a_cell(bits, 16, lane, reg, element);
  return {c.row + 16 * warp, c.col};
}

constexpr Cell wgmma_d_cell(u32 warp, u32 lane, u32 reg) {
  const Cell c = c_cell(16, lane, reg);
  return {c.row + 16 * warp, c.col};
}

// ldmatrix / stmatrix / movmatrix .m8n8.b16: what element 0 or 1 of a lane's register is, of one 8x8 matrix.
constexpr Cell matrix_cell(bool trans, u32 lane, u32 element) {
  const u32 g = lane / 4, pair = 2 * (lane % 4) + element;
  return trans ? Cell{pair, g} : Cell{g, pair};
}

// Matrix i of .x1/.x2/.x4 takes the addresses of its rows from lanes 8 i .. 8 i + 7; matrix i fills register i.
constexpr u32 matrix_row_lane(u32 matrix, u32 row) { return 8 * matrix + row; }

// `rows[lane]` points at the 16 bytes that lane addresses; `registers[i]` at 32 lanes.
inline void ldmatrix(u32 count, bool trans, const u8* const* rows, u32* const* registers) {
  for (u32 i = 0; i < count; ++i) {
    u32 out[kLanes];
    for (u32 lane = 0; lane < kLanes; ++lane) {
      u16 half[2];
      for (u32 e = 0; e < 2; ++e) {
        const Cell c = matrix_cell(trans, lane, e);
        std::memcpy(&half[e], rows[matrix_row_lane(i, c.row)] + 2 * c.col, 2);
      }
      out[lane] = half[0] | u32{half[1]} << 16;
    }
    std::memcpy(registers[i], out, sizeof out);
  }
}

inline void stmatrix(u32 count, bool trans, const u32* const* registers, u8* const* rows) {
  for (u32 i = 0; i < count; ++i) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      for (u32 e = 0; e < 2; ++e) {
        const u16 half = static_cast<u16>(registers[i][lane] >> (16 * e));
        const Cell c = matrix_cell(trans, lane, e);
        std::memcpy(rows[matrix_row_lane(i, c.row)] + 2 * c.col, &half, 2);
      }
    }
  }
}

// movmatrix.sync.aligned.m8n8.trans.b16 (PTX ISA 9.7.14.5.17).
inline void movmatrix(const u32* from, u32* to) {
  u16 matrix[8][8];
  for (u32 lane = 0; lane < kLanes; ++lane) {
    for (u32 e = 0; e < 2; ++e) {
      const Cell c = matrix_cell(false, lane, e);
      matrix[c.row][c.col] = static_cast<u16>(from[lane] >> (16 * e));
    }
  }
  for (u32 lane = 0; lane < kLanes; ++lane) {
    const Cell lo = matrix_cell(true, lane, 0), hi = matrix_cell(true, lane, 1);
    to[lane] = matrix[lo.row][lo.col] | u32{matrix[hi.row][hi.col]} << 16;
  }
}

}  // namespace tkpy::emulator::tensor
