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

// Transposes an 8 x 8 matrix of 16-bit elements spread over the warp (PTX ISA, movmatrix).
TK_DEVICE u32 movmatrix_trans(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// ---- Shared memory: ld, st (volatile: they keep their order with barriers) ---------------------------------------
TK_DEVICE float ld_shared(u32 address) {
  float x;
  TK_PTX_MEMORY("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address));
  return x;
}
TK_DEVICE float2 ld_shared_v2(u32 address) {
  float2 x;
  TK_PTX_MEMORY("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address));
  return x;
}
TK_DEVICE uint4 ld_shared_v4(u32 address) {
  uint4 x;
  TK_PTX_MEMORY("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                : "r"(address));
  return x;
}
TK_DEVICE void st_shared(u32 address, float x) { TK_PTX_MEMORY("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x)); }
TK_DEVICE void st_shared_v2(u32 address, float x, float y) {
  TK_PTX_MEMORY("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y));
}
TK_DEVICE void st_shared_v4(u32 address, uint4 x) {
  TK_PTX_MEMORY("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w));
}
TK_DEVICE void st_cluster_v4(u32 address, uint4 x) {  // in any CTA of the cluster; the address comes from mapa
  TK_PTX_MEMORY("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z),
                "r"(x.w));
}

// ---- Global memory: ld, st, 16 bytes ------------------------------------------------------------------------------
TK_DEVICE uint4 ld_global_v4(const void* at) {
  uint4 x;
  TK_PTX_MEMORY("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                : "l"(__cvta_generic_to_global(at)));
  return x;
}
TK_DEVICE void st_global_v4(void* at, uint4 x) {
  TK_PTX_MEMORY("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(x.x), "r"(x.y),
                "r"(x.z), "r"(x.w));
}

TK_DEVICE void red_add_v4(float* at, float x, float y, float z, float w) {  // parallel synchronisation: red, vectors
  TK_PTX_MEMORY("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "f"(x),
                "f"(y), "f"(z), "f"(w));
}

// ---- Data movement: cp.async (16 bytes, past L1; what lies beyond `bytes` is written as zero) ---------------------
TK_DEVICE void cp_async_16(u32 dst, const void* src, u32 bytes) {
  TK_PTX_MEMORY("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)),
                "r"(bytes));
}
TK_DEVICE void cp_async_commit_group() { TK_PTX_MEMORY("cp.async.commit_group;" ::); }
template <int Pending>
TK_DEVICE void cp_async_wait_group() {
  TK_PTX_MEMORY("cp.async.wait_group %0;" ::"n"(Pending));
}

// ---- Floating point: approximations (PTX ISA states their errors), .ftz: subnormals are zero ----------------------
#define TK_APPROXIMATION(NAME, INSTRUCTION)             \
  TK_DEVICE float NAME(float x) {                       \
    float y;                                            \
    asm(INSTRUCTION ".f32 %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                           \
  }
TK_APPROXIMATION(ex2, "ex2.approx.ftz")
TK_APPROXIMATION(lg2, "lg2.approx.ftz")
TK_APPROXIMATION(rcp, "rcp.approx.ftz")
TK_APPROXIMATION(rsqrt, "rsqrt.approx.ftz")
TK_APPROXIMATION(sqrt, "sqrt.approx.ftz")
TK_APPROXIMATION(sin, "sin.approx.ftz")
TK_APPROXIMATION(cos, "cos.approx.ftz")
TK_APPROXIMATION(tanh, "tanh.approx")
#undef TK_APPROXIMATION

// ---- Conversions: cvt --------------------------------------------------------------------------------------------
// Two floats to a pair of T, the first in the lower half; 8-bit types saturate to their largest finite value.
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
template <>
TK_DEVICE u32 pack<e4m3>(float low, float high) {
  unsigned short pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
TK_DEVICE u32 pack<e5m2>(float low, float high) {
  unsigned short pair;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
TK_DEVICE float to_tf32(float x) {  // rounds to nearest, ties away from zero
  u32 y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
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
// Two 8-bit floats to a pair of fp16, which holds all of them exactly.
template <class T>
TK_DEVICE u32 widen(unsigned short pair);
template <>
TK_DEVICE u32 widen<e4m3>(unsigned short pair) {
  u32 halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
  return halves;
}
template <>
TK_DEVICE u32 widen<e5m2>(unsigned short pair) {
  u32 halves;
  asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(pair));
  return halves;
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
