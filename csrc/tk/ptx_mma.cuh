// mma.sync (PTX ISA, warp level matrix instructions): m16n8, A in four registers, B in two, D += A B. All operand types
// of sm_90a except double and bits. The instruction only computes: no "memory" clobber.
#pragma once

#include "types.cuh"

namespace tk::ptx {

template <class D, class A, class B>
struct mma_form {
  static constexpr bool exists = false;
};
#define TK_FORM(D, A, B, DEPTH, TYPES, ACCUMULATOR)                                  \
  template <>                                                                        \
  struct mma_form<D, A, B> {                                                         \
    static constexpr bool exists = true;                                             \
    static constexpr int depth = DEPTH;                                              \
    static constexpr char text[] = "k" #DEPTH ".row.col." TYPES "." ACCUMULATOR;     \
  };
TK_FORM(float, bf16, bf16, 16, "f32.bf16.bf16", "f32")
TK_FORM(float, fp16, fp16, 16, "f32.f16.f16", "f32")
TK_FORM(fp16, fp16, fp16, 16, "f16.f16.f16", "f16")
TK_FORM(float, tf32, tf32, 8, "f32.tf32.tf32", "f32")
TK_FORM(float, e4m3, e4m3, 32, "f32.e4m3.e4m3", "f32")
TK_FORM(float, e4m3, e5m2, 32, "f32.e4m3.e5m2", "f32")
TK_FORM(float, e5m2, e4m3, 32, "f32.e5m2.e4m3", "f32")
TK_FORM(float, e5m2, e5m2, 32, "f32.e5m2.e5m2", "f32")
TK_FORM(int, int8, int8, 32, "s32.s8.s8", "s32")
TK_FORM(int, int8, uint8, 32, "s32.s8.u8", "s32")
TK_FORM(int, uint8, int8, 32, "s32.u8.s8", "s32")
TK_FORM(int, uint8, uint8, 32, "s32.u8.u8", "s32")
#undef TK_FORM

template <class Form>
TK_DEVICE void mma(float* d, const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8%10 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "C"(Form::text));
}
template <class Form>
TK_DEVICE void mma(int* d, const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8%10 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "C"(Form::text));
}
template <class Form>
TK_DEVICE void mma(u32* d, const u32 (&a)[4], u32 b0, u32 b1) {  // packed fp16 accumulators
  asm volatile("mma.sync.aligned.m16n8%8 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "C"(Form::text));
}

}  // namespace tk::ptx
