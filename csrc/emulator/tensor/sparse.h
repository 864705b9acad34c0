// Structured sparsity of A in mma.sp and wgmma.sp (PTX ISA 9.7.14.6, 9.7.15.6): which column of the dense K each stored
// element stands for.
//
// A row of A is cut into chunks along K: 4 columns of a 16- or 8-bit type keep 2 elements, 2 of tf32 keep 1, 8 of a 4-bit
// type keep 2 pairs. Four bits of metadata a chunk name what is kept: two 2-bit indices of elements (of pairs, for 4-bit
// types; of 16-bit halves, for tf32: 0b0100 or 0b1110), the first in the low bits. Metadata come in one register a lane;
// lane 4 g + t serves rows g and g + 8 of its warp's 16. Of 16-bit types and tf32 a register holds 4 chunks of row g in its
// low half and of row g + 8 in its high half, and t counts those groups of chunks; of 8- and 4-bit types it holds 8 chunks
// of row g (t even) or g + 8 (t odd), and t / 2 counts. Where fewer than four lanes suffice, the selector says which.
#pragma once

#include "../common.h"

namespace tkpy::emulator::tensor {

struct SparseA {
  Type type;
  u32 k;         // dense columns
  u32 selector;  // of the lanes that carry metadata
};

inline u32 sparse_chunk(Type type) { return type_bits(type) == 4 ? 8 : type == Type::tf32 ? 2 : 4; }
// Selectors that exist: 4, 2 or 1, as one, two or all of every four lanes carry metadata.
inline u32 sparse_selectors(Type type, u32 k) {
  return 16 / (k / sparse_chunk(type));  // 4 chunks: 16 bits a row, 256 in all, 8 lanes of 32
}

// The dense column of stored element `stored` of row `row` (0..15) of a warp whose lanes hold `metadata`.
inline u32 sparse_column(const SparseA& s, const u32* metadata, u32 row, u32 stored) {
  const u32 bits = type_bits(s.type), chunk_columns = sparse_chunk(s.type), kept = chunk_columns / 2;
  const u32 chunk = stored / kept, within = stored % kept, g = row % 8, half = row / 8;
  const u32 lanes = 4 / sparse_selectors(s.type, s.k), first = 4 * g + s.selector * lanes;
  const u32 nibble = bits >= 16 ? metadata[first + chunk / 4] >> (16 * half + 4 * (chunk % 4))
                                : metadata[first + half + chunk / 8 * 2] >> (4 * (chunk % 8));
  if (s.type == Type::tf32) return 2 * chunk + (nibble >> 1 & 1);
  if (bits == 4) return 8 * chunk + 2 * (nibble >> (within / 2 * 2) & 3) + within % 2;
  return 4 * chunk + (nibble >> (2 * within) & 3);
}

}  // namespace tkpy::emulator::tensor
