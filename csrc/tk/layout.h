// Where every element of a tile lives: register fragments, swizzled shared memory, matrix descriptors. Pure constexpr
// arithmetic, the same on host and device; tests/kernels/test_layout.py runs all of it exhaustively on the host.
#pragma once

#if defined(__CUDACC__)
#define TK_HD __host__ __device__
#else
#define TK_HD
#endif

namespace tk {

using u32 = unsigned int;
using u64 = unsigned long long;

// ---- Register fragments: g = lane / 4, t = lane % 4 -------------------------------------------------------------
// A block of 16 x n elements gives each lane n / 2 of them, in runs of `run` neighbours: run 2 for fp32, int32 and
// 16-bit types, 4 for 8-bit types, 1 for tf32.
//   elements 2 run j ..       = row g,     columns 4 run j + run t ..
//   elements 2 run j + run .. = row g + 8, the same columns
// It is at once the A operand of mma.sync, register A of wgmma for the warp's 16 rows, and (run 2) the accumulator of
// both (PTX ISA: matrix fragments for mma.m16n8k8, k16, k32; register fragments for wgmma.mma_async.m64nNk16).
TK_HD constexpr int fragment_row(int lane, int element, int run = 2) { return lane / 4 + 8 * (element / run % 2); }
TK_HD constexpr int fragment_col(int lane, int element, int run = 2) {
  return 4 * run * (element / (2 * run)) + run * (lane % 4) + element % run;
}

// A row tile holds such blocks of 16 rows. A column tile is the row tile of its transpose: blocks of 16 columns, with
// the runs going down the rows; it is the B operand of mma.sync for B stored K x N.
enum class Layout { row, col };

// Register vectors, by what they go with in a tile:
//   across  one value per row of a row tile, per column of a column tile: slot 2 b + h is index 16 b + 8 h + g
//   along   one value per column of a row tile, per row of a column tile: slot run j + i is index 4 run j + run t + i
//   lanes   nothing twice: slot j is index 32 j + lane
enum class Spread { across, along, lanes };
TK_HD constexpr int vector_slots(Spread spread, int length) {
  return spread == Spread::across ? length / 8 : spread == Spread::along ? length / 4 : (length + 31) / 32;
}
TK_HD constexpr int vector_index(Spread spread, int lane, int slot, int run = 2) {
  return spread == Spread::across  ? 8 * slot + lane / 4
         : spread == Spread::along ? 4 * run * (slot / run) + run * (lane % 4) + slot % run
                                   : 32 * slot + lane;
}
// The slots that element `element` of block `block` of a tile meets.
TK_HD constexpr int across_slot(int block, int element, int run = 2) { return 2 * block + element / run % 2; }
TK_HD constexpr int along_slot(int element, int run = 2) { return element / (2 * run) * run + element % run; }

// ldmatrix / stmatrix .x4 on 16 rows x 32 bytes (PTX ISA, ldmatrix): lane l gives the address of row matrix_row(l),
// 16-byte chunk matrix_chunk(l), so that register r holds run r of the fragment above. With .trans, on 16 x 16 elements
// of 16 bits, the same register r is run r of the column tile's fragment.
TK_HD constexpr int matrix_row(int lane) { return lane % 16; }
TK_HD constexpr int matrix_chunk(int lane) { return lane / 16; }
TK_HD constexpr int matrix_trans_row(int lane) { return lane % 8 + lane / 16 * 8; }
TK_HD constexpr int matrix_trans_chunk(int lane) { return lane / 8 % 2; }

// Which 16-row slab of a group's tile is slab `slab` of warp `warp` of `warps`: slabs go round the warps, as the 64-row
// blocks of wgmma do.
TK_HD constexpr int group_slab(int warps, int warp, int slab) { return warps * slab + warp; }

// ---- Shared tiles -----------------------------------------------------------------------------------------------
// A tile is cut into panels of `swizzle` bytes of columns; a panel is rows x swizzle bytes, and inside it 16-byte
// chunks are permuted with a period of 8 rows (PTX ISA, tensors: swizzling modes). swizzle 0: row-major.
TK_HD constexpr u32 swizzle_period(int swizzle) { return 8u * static_cast<u32>(swizzle ? swizzle : 16); }

TK_HD constexpr u32 swizzle_bytes(u32 offset, int swizzle) {
  return swizzle ? offset ^ (((offset % swizzle_period(swizzle)) >> 7) << 4) : offset;
}

// The widest swizzle whose panels divide a row of `row_bytes`.
TK_HD constexpr int widest_swizzle(int row_bytes) {
  return row_bytes % 128 == 0 ? 128 : row_bytes % 64 == 0 ? 64 : row_bytes % 32 == 0 ? 32 : 0;
}

// Where element (row, col) would lie if chunks were not permuted: descriptors begin there, the hardware permutes.
TK_HD constexpr u32 linear_offset(int rows, int cols, int size, int swizzle, int row, int col) {
  const u32 width = static_cast<u32>(swizzle ? swizzle : cols * size), byte = static_cast<u32>(col * size);
  return byte / width * static_cast<u32>(rows) * width + static_cast<u32>(row) * width + byte % width;
}

// Byte offset of element (row, col) of a rows x cols tile of `size`-byte elements; neither is negative. The XOR depends
// on the row only, and on no more of it than row % 8, so that a loop over rows or columns repeats little of this.
TK_HD constexpr u32 tile_offset(int rows, int cols, int size, int swizzle, int row, int col) {
  const u32 width = static_cast<u32>(swizzle ? swizzle : cols * size), byte = static_cast<u32>(col * size);
  const u32 panel = byte / width * static_cast<u32>(rows) * width;
  const u32 turn = swizzle ? static_cast<u32>(row) % 8 * width / 128 * 16 : 0;
  return panel + static_cast<u32>(row) * width + (byte % width ^ turn);
}

// 64-bit accesses of 32-bit fragments: half a warp reads 4 rows x 32 bytes. Under the 64- and 128-byte swizzles two of
// those rows lie in the same banks, unless lanes of every other row (pair of rows) take piece j ^ distance (of 32
// bytes) when the others take piece j.
TK_HD constexpr int pair_twist_distance(int swizzle) { return swizzle == 128 ? 2 : swizzle == 64 ? 1 : 0; }
TK_HD constexpr bool pair_twist(int swizzle, int lane) {
  return swizzle == 128 ? lane / 4 % 2 != 0 : swizzle == 64 && lane / 8 % 2 != 0;
}

// ---- wgmma matrix descriptors (PTX ISA, matrix descriptor format) ------------------------------------------------
// bits 0-13 address / 16, 16-29 leading offset / 16, 32-45 stride offset / 16, 49-51 base offset, 62-63 swizzle.
// The base offset is 0: tiles are aligned to their swizzle period.
TK_HD constexpr u64 descriptor_swizzle(int swizzle) {
  return swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
}

TK_HD constexpr u64 encode_offset(u32 bytes) { return (bytes & 0x3ffffu) >> 4; }

TK_HD constexpr u64 matrix_descriptor(u32 address, u32 leading, u32 stride, int swizzle) {
  return encode_offset(address) | encode_offset(leading) << 16 | encode_offset(stride) << 32 |
         descriptor_swizzle(swizzle) << 62;
}

// One k-step of 16 (16-bit elements) of a tile, either stored with K along its rows' bytes (K-major: the tile is
// MN x K) or with K down its rows (MN-major: the tile is K x MN).
enum class Major { k, mn };

// Bytes from the start of the tile to k-step `step`. K-major: 32 bytes further along, panel after panel. MN-major: 16
// rows further down.
TK_HD constexpr u32 step_offset(Major major, int rows, int swizzle, int step) {
  if (major == Major::mn) return static_cast<u32>(step * 16 * swizzle);
  return static_cast<u32>(step * 32 / swizzle * rows * swizzle + step * 32 % swizzle);
}

// K-major: the stride offset joins groups of 8 rows, the leading offset is not used. MN-major: the stride offset joins
// groups of 8 k, the leading offset joins panels.
TK_HD constexpr u64 tile_descriptor(u32 address, Major major, int rows, int swizzle, int step) {
  const u32 leading = major == Major::mn ? static_cast<u32>(rows * swizzle) : 16u;
  return matrix_descriptor(address + step_offset(major, rows, swizzle, step), leading, swizzle_period(swizzle),
                           swizzle);
}

// Shared-memory patch of 64-column fp32 rows, written by fragments and read by rows, both without bank conflicts: the
// column of element (row, col).
TK_HD constexpr int patch_col(int row, int col) { return col ^ (8 * (row % 4)); }

// ---- Order of output tiles --------------------------------------------------------------------------------------
// Neighbouring CTAs should share operands in L2: tiles go down groups of `group` tile rows, column by column.
struct Tile2 {
  int row, col;
};

TK_HD constexpr Tile2 grouped_tile(int index, int tile_rows, int tile_cols, int group) {
  const int per_group = group * tile_cols;
  const int first = index / per_group * group;
  const int height = tile_rows - first < group ? tile_rows - first : group;
  const int within = index % per_group;
  return {first + within % height, within / height};
}

// Task of worker `index` of `workers` in round `round`: forwards in even rounds, backwards in odd ones.
TK_HD constexpr int snake_task(int round, int index, int workers) {
  return round * workers + (round % 2 ? workers - 1 - index : index);
}

}  // namespace tk
