// Handlers of wmma. imm: the packed WmmaOp. Loads and stores: d[1] type, a matrix, b column-major, s[0] address row (f bit 0:
// 64 bits), s[1] stride; d[0] and the list's entry after the fragment are scratch rows.
#pragma once

#include "exec.h"
#include "tensor/wmma.h"

namespace tkpy::emulator {

void exec_wmma_load(Exec& x, const Op& op, u32 mask);
void exec_wmma_store(Exec& x, const Op& op, u32 mask);
void exec_wmma(Exec& x, const Op& op, u32 mask);

// A and B have one type.
constexpr i64 pack_wmma(const tensor::WmmaOp& w) {
  const u64 types = u64(w.a) | u64(w.c) << 8 | u64(w.d) << 16;
  return static_cast<i64>(u64{w.m} | u64{w.n} << 8 | u64{w.k} << 16 | types << 24 | u64(w.satfinite) << 48 | u64(w.xor_popc) << 49 | u64{w.rounding} << 50);
}

constexpr tensor::WmmaOp unpack_wmma(i64 packed) {
  const auto byte = [&](u32 at) { return static_cast<u32>(static_cast<u64>(packed) >> (8 * at) & 0xff); };
  const auto a = static_cast<Type>(byte(3));
  return {byte(0), byte(1), byte(2), a, a, static_cast<Type>(byte(4)), static_cast<Type>(byte(5)), (byte(6) & 1) != 0, (byte(6) & 2) != 0, static_cast<u8>(byte(6) >> 2)};
}

}  // namespace tkpy::emulator
