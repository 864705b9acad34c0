// wgmma's 64-bit shared-memory matrix descriptors: which 16 bytes of shared memory hold which elements.
//
// PTX ISA 9.7.15.5.1 "Asynchronous Warpgroup Level Matrix Shared Memory Layout". In units of 16 bytes, with T elements
// in 16 bytes and W = 1, 2, 4, 8 such units in the swizzle width (none, 32, 64, 128 bytes), the canonical layouts are
//   K-major  none     row r, unit c:    r % 8 + SBO (r / 8) + LBO c
//   K-major  swizzled row r, unit c:    W (r % 8) + SBO (r / 8) + c                      LBO is not used
//   MN-major none     unit b, column k: SBO b + k % 8 + LBO (k / 8)
//   MN-major swizzled unit b, column k: b % W + LBO (b / W) + W (k % 8) + SBO (k / 8)
// counted from the start address; then address bits 4.. are XORed with bits 7.., as many as the width has bits.
#pragma once

#include "../common.h"

namespace tkpy::emulator::tensor {

enum class Swizzle : u8 { none, b32, b64, b128 };

constexpr u32 swizzle_width(Swizzle s) { return 16u << static_cast<u32>(s); }       // 16 for none
constexpr u32 swizzle_repeat(Swizzle s) { return 8 * swizzle_width(s); }            // bytes after which it repeats

// The pattern is a function of shared-memory address bits, so that TMA, wgmma and hand-written code agree. base_offset
// (a descriptor's) is (pattern start >> 7) & 7 of a pattern that does not start on its repeat boundary: rows are
// counted from there. Subtracting, not XORing, is the one reading under which row r gets phase r for every start.
constexpr u32 swizzle_address(u32 address, Swizzle s, u32 base_offset = 0) {
  const u32 phase = ((address >> 7) - base_offset) & ((1u << static_cast<u32>(s)) - 1);
  return address ^ phase << 4;
}

struct MatrixDescriptor {
  u32 start = 0, leading = 0, stride = 0;  // bytes, multiples of 16 below 2^18
  u32 base_offset = 0;                     // 0..7
  Swizzle swizzle = Swizzle::none;
};

MatrixDescriptor decode_descriptor(u64 bits);
// What the ISA's matrix-descriptor-encode makes of it: the low four bits and those above 18 are lost.
u64 encode_descriptor(const MatrixDescriptor& d);

// One operand of one wgmma: mn rows of A (64) or columns of B (n); 32 bytes along K in every type, 64 of B where A is
// sparse. The ISA does not say where the second 32 bytes of a K-major B with 32-byte swizzle lie: LBO after the first, here.
struct Operand {
  u32 mn;
  u32 element_bytes;  // 1 also for b1
  bool mn_major;      // only two-byte elements
  u32 units = 2;      // of 16 bytes along K
};

// Addresses of the operand's units * mn units of 16 bytes. K-major: unit `units` r + c holds elements (r, c T ..). MN-major: unit
// k * (mn / 8) + b holds elements (8 b .. 8 b + 7, k).
constexpr u32 operand_units(const Operand& operand) { return operand.units * operand.mn; }
void operand_addresses(const MatrixDescriptor& d, const Operand& operand, u32* addresses);

// Why these bits are not a descriptor of this operand; empty when they are.
std::string descriptor_reason(u64 bits, const Operand& operand);
// Why these bits, though they have a meaning, are unlikely to be meant; empty when nothing is odd.
std::string descriptor_doubt(u64 bits, const Operand& operand);

// Shared memory as the library sees it: `bytes` bytes from address `base` on.
struct SharedBytes {
  u8* data = nullptr;
  u32 base = 0;
  u32 bytes = 0;
  bool holds(u32 address, u32 count) const {
    return address >= base && u64{address} - base + count <= bytes;
  }
  u8* at(u32 address) const { return data + (address - base); }
};

// Names the first unit that lies outside; empty when all are inside.
std::string operand_out_of_bounds(const MatrixDescriptor& d, const Operand& operand, const SharedBytes& shared);

}  // namespace tkpy::emulator::tensor
