#include "descriptor.h"

#include <cstdio>

namespace tkpy::emulator::tensor {

namespace {

constexpr u64 kReserved = u64{3} << 14 | u64{3} << 30 | u64{7} << 46 | u64{0x3ff} << 52;
constexpr Swizzle kCodes[4] = {Swizzle::none, Swizzle::b128, Swizzle::b64, Swizzle::b32};

std::string hex(u32 value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%x", value);
  return text;
}

}  // namespace

MatrixDescriptor decode_descriptor(u64 bits) {
  MatrixDescriptor d;
  d.start = static_cast<u32>(bits & 0x3fff) << 4;
  d.leading = static_cast<u32>(bits >> 16 & 0x3fff) << 4;
  d.stride = static_cast<u32>(bits >> 32 & 0x3fff) << 4;
  d.base_offset = static_cast<u32>(bits >> 49 & 7);
  d.swizzle = kCodes[bits >> 62];
  return d;
}

u64 encode_descriptor(const MatrixDescriptor& d) {
  u64 code = 0;
  while (kCodes[code] != d.swizzle) ++code;
  const auto field = [](u32 bytes) { return u64{(bytes & 0x3ffffu) >> 4}; };
  return field(d.start) | field(d.leading) << 16 | field(d.stride) << 32 | u64{d.base_offset & 7} << 49 | code << 62;
}

void operand_addresses(const MatrixDescriptor& d, const Operand& operand, u32* addresses) {
  const u32 width = swizzle_width(d.swizzle);
  const u32 units = width / 16;
  const bool plain = d.swizzle == Swizzle::none;
  if (!operand.mn_major) {
    for (u32 row = 0; row < operand.mn; ++row) {
      const u32 at = d.start + row % 8 * width + row / 8 * d.stride;
      for (u32 c = 0; c < operand.units; ++c) {
        const u32 column = c / units * d.leading + c % units * 16;
        addresses[operand.units * row + c] = swizzle_address(at + column, d.swizzle, d.base_offset);
      }
    }
    return;
  }
  const u32 blocks = operand.mn / 8;
  const u32 panel = plain ? d.stride : d.leading;  // from one swizzle width of M or N to the next
  const u32 group = plain ? d.leading : d.stride;  // from eight columns to the next eight
  for (u32 k = 0; k < 8 * operand.units; ++k) {
    for (u32 block = 0; block < blocks; ++block) {
      const u32 at = d.start + block % units * 16 + block / units * panel + k % 8 * width + k / 8 * group;
      addresses[k * blocks + block] = swizzle_address(at, d.swizzle, d.base_offset);
    }
  }
}

std::string descriptor_reason(u64 bits, const Operand& operand) {
  if (bits & kReserved) {
    if ((bits >> 46 & 7) == 1) {
      return "reserved bit 46 is set, as in a tcgen05 descriptor: wgmma's have it clear and the swizzle in bits 62-63";
    }
    return "reserved bits are set (14-15, 30-31, 46-48 and 52-61 must be zero)";
  }
  if (operand.mn_major && operand.element_bytes != 2) {
    return "only f16 and bf16 operands can be M- or N-major; this type is always K-major";
  }
  const MatrixDescriptor d = decode_descriptor(bits);
  if (d.swizzle == Swizzle::none && d.base_offset) {
    return "base offset " + std::to_string(d.base_offset) + " without a swizzle";
  }
  return {};
}

std::string descriptor_doubt(u64 bits, const Operand& operand) {
  const MatrixDescriptor d = decode_descriptor(bits);
  const bool plain = d.swizzle == Swizzle::none;
  const u32 repeat = swizzle_repeat(d.swizzle);
  const u32 along = swizzle_width(d.swizzle) / 2;  // 16-bit elements of M or N in one swizzle width
  const bool needs_leading = operand.mn_major ? (plain || operand.mn > along) : plain;
  const bool needs_stride = operand.mn > 8 || (operand.mn_major && !plain);
  if (needs_leading && d.leading == 0) return "the leading byte offset is 0: two core matrices share one address";
  if (needs_stride && d.stride == 0) return "the stride byte offset is 0: two core matrices share one address";
  if (plain) return {};
  const auto broken = [&](const char* name, u32 bytes) {
    return std::string(name) + " byte offset " + std::to_string(bytes) + " is not a multiple of " +
           std::to_string(repeat) + " bytes, after which the " + std::to_string(swizzle_width(d.swizzle)) +
           "-byte swizzle repeats";
  };
  if (needs_stride && d.stride % repeat) return broken("stride", d.stride);
  if (operand.mn_major && needs_leading && d.leading % repeat) return broken("leading", d.leading);
  const u32 phase = ((d.start >> 7) - d.base_offset) & (repeat / 128 - 1);
  if (phase) {
    return "start address " + hex(d.start) + " is in row " + std::to_string(phase) +
           " of its swizzle pattern (base offset " + std::to_string(d.base_offset) + "): align the tile to " +
           std::to_string(repeat) + " bytes or set the base offset";
  }
  return {};
}

std::string operand_out_of_bounds(const MatrixDescriptor& d, const Operand& operand, const SharedBytes& shared) {
  std::vector<u32> addresses(operand_units(operand));
  operand_addresses(d, operand, addresses.data());
  for (u32 i = 0; i < addresses.size(); ++i) {
    if (shared.holds(addresses[i], 16)) continue;
    const u32 blocks = operand.mn / 8;
    const std::string element =
        operand.mn_major ? std::to_string(i % blocks * 8) + ", k " + std::to_string(i / blocks)
                         : std::to_string(i / operand.units) + ", k " + std::to_string(i % operand.units * 16 / operand.element_bytes);
    return "row " + element + " is at " + hex(addresses[i]) + ", outside shared memory [" + hex(shared.base) + ", " +
           hex(shared.base + shared.bytes) + ")";
  }
  return {};
}

}  // namespace tkpy::emulator::tensor
