// Inline PTX of data movement and arithmetic within a thread or warp: matrices, shuffles, vector accesses, cp.async,
// approximations, conversions. One wrapper per instruction, named after it, under the PTX ISA's own headings. "memory"
// clobbers stand wherever the instruction reads or writes memory.
#pragma once

#include "types.cuh"

namespace tk::ptx {

#define TK_PTX_MEMORY(...) asm volatile(__VA_ARGS__ : "memory")

TK_DEVICE u32 shared_address(const void* pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

// ---- Matrices between shared memory and registers: ldmatrix, stmatrix ------------------------------------------
TK_DEVICE void ldmatrix_x4(u32 (&r)[4], u32 address) {
  TK_PTX_MEMORY("ldmatrix.sync.aligned.m8n8.x4.shared::cta.b16 {%0, %1, %2, %3}, [%4];"
                : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                : "r"(address));
}
TK_DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
  TK_PTX_MEMORY("ldmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 {%0, %1, %2, %3}, [%4];"
                : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                : "r"(address));
}
TK_DEVICE void stmatrix_x4(u32 address, const u32 (&r)[4]) {
  TK_PTX_MEMORY("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                "r"(r[1]), "r"(r[2]), "r"(r[3]));
}
TK_DEVICE void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
  TK_PTX_MEMORY("stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]));
}

// ---- Arithmetic and conversions: ex2, rcp, cvt -----------------------------------------------------------------
TK_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TK_DEVICE float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
TK_DEVICE u32 pack(float low, float high);
template <>
TK_DEVICE u32 pack<bf16>(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
TK_DEVICE u32 pack<fp16>(float low, float high) {
  u32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <class T>
TK_DEVICE float to_float(unsigned short bits);
template <>
TK_DEVICE float to_float<bf16>(unsigned short bits) {  // bfloat16 is the upper half of a binary32
  return __uint_as_float(static_cast<u32>(bits) << 16);
}
template <>
TK_DEVICE float to_float<fp16>(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
template <class T>
TK_DEVICE float low(u32 pair) {
  return to_float<T>(static_cast<unsigned short>(pair & 0xffffu));
}
template <class T>
TK_DEVICE float high(u32 pair) {
  return to_float<T>(static_cast<unsigned short>(pair >> 16));
}

#undef TK_PTX_MEMORY

}  // namespace tk::ptx
