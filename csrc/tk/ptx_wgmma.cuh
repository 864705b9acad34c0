// wgmma.mma_async m64nNk16, N = 8 .. 256 in steps of 8, bf16 or fp16 operands, fp32 accumulators.
// An asm statement needs its operands spelled out: the lists below grow by one n8 block (4 registers) a line, so each
// shape is two lists and three operand numbers.
#pragma once

#include "types.cuh"

namespace tk::ptx {

// Register names of a block: %first .. %first+3
#define TK_RN(a, b, c, d) "%" #a ", %" #b ", %" #c ", %" #d
// Operands of block i
#define TK_DN(i) "+f"(d[4 * i]), "+f"(d[4 * i + 1]), "+f"(d[4 * i + 2]), "+f"(d[4 * i + 3])

#define TK_R8 TK_RN(0, 1, 2, 3)
#define TK_R16 TK_R8 ", " TK_RN(4, 5, 6, 7)
#define TK_R24 TK_R16 ", " TK_RN(8, 9, 10, 11)
#define TK_R32 TK_R24 ", " TK_RN(12, 13, 14, 15)
#define TK_R40 TK_R32 ", " TK_RN(16, 17, 18, 19)
#define TK_R48 TK_R40 ", " TK_RN(20, 21, 22, 23)
#define TK_R56 TK_R48 ", " TK_RN(24, 25, 26, 27)
#define TK_R64 TK_R56 ", " TK_RN(28, 29, 30, 31)
#define TK_R72 TK_R64 ", " TK_RN(32, 33, 34, 35)
#define TK_R80 TK_R72 ", " TK_RN(36, 37, 38, 39)
#define TK_R88 TK_R80 ", " TK_RN(40, 41, 42, 43)
#define TK_R96 TK_R88 ", " TK_RN(44, 45, 46, 47)
#define TK_R104 TK_R96 ", " TK_RN(48, 49, 50, 51)
#define TK_R112 TK_R104 ", " TK_RN(52, 53, 54, 55)
#define TK_R120 TK_R112 ", " TK_RN(56, 57, 58, 59)
#define TK_R128 TK_R120 ", " TK_RN(60, 61, 62, 63)
#define TK_R136 TK_R128 ", " TK_RN(64, 65, 66, 67)
#define TK_R144 TK_R136 ", " TK_RN(68, 69, 70, 71)
#define TK_R152 TK_R144 ", " TK_RN(72, 73, 74, 75)
#define TK_R160 TK_R152 ", " TK_RN(76, 77, 78, 79)
#define TK_R168 TK_R160 ", " TK_RN(80, 81, 82, 83)
#define TK_R176 TK_R168 ", " TK_RN(84, 85, 86, 87)
#define TK_R184 TK_R176 ", " TK_RN(88, 89, 90, 91)
#define TK_R192 TK_R184 ", " TK_RN(92, 93, 94, 95)
#define TK_R200 TK_R192 ", " TK_RN(96, 97, 98, 99)
#define TK_R208 TK_R200 ", " TK_RN(100, 101, 102, 103)
#define TK_R216 TK_R208 ", " TK_RN(104, 105, 106, 107)
#define TK_R224 TK_R216 ", " TK_RN(108, 109, 110, 111)
#define TK_R232 TK_R224 ", " TK_RN(112, 113, 114, 115)
#define TK_R240 TK_R232 ", " TK_RN(116, 117, 118, 119)
#define TK_R248 TK_R240 ", " TK_RN(120, 121, 122, 123)
#define TK_R256 TK_R248 ", " TK_RN(124, 125, 126, 127)
#define TK_D8 TK_DN(0)
#define TK_D16 TK_D8, TK_DN(1)
#define TK_D24 TK_D16, TK_DN(2)
#define TK_D32 TK_D24, TK_DN(3)
#define TK_D40 TK_D32, TK_DN(4)
#define TK_D48 TK_D40, TK_DN(5)
#define TK_D56 TK_D48, TK_DN(6)
#define TK_D64 TK_D56, TK_DN(7)
#define TK_D72 TK_D64, TK_DN(8)
#define TK_D80 TK_D72, TK_DN(9)
#define TK_D88 TK_D80, TK_DN(10)
#define TK_D96 TK_D88, TK_DN(11)
#define TK_D104 TK_D96, TK_DN(12)
#define TK_D112 TK_D104, TK_DN(13)
#define TK_D120 TK_D112, TK_DN(14)
#define TK_D128 TK_D120, TK_DN(15)
#define TK_D136 TK_D128, TK_DN(16)
#define TK_D144 TK_D136, TK_DN(17)
#define TK_D152 TK_D144, TK_DN(18)
#define TK_D160 TK_D152, TK_DN(19)
#define TK_D168 TK_D160, TK_DN(20)
#define TK_D176 TK_D168, TK_DN(21)
#define TK_D184 TK_D176, TK_DN(22)
#define TK_D192 TK_D184, TK_DN(23)
#define TK_D200 TK_D192, TK_DN(24)
#define TK_D208 TK_D200, TK_DN(25)
#define TK_D216 TK_D208, TK_DN(26)
#define TK_D224 TK_D216, TK_DN(27)
#define TK_D232 TK_D224, TK_DN(28)
#define TK_D240 TK_D232, TK_DN(29)
#define TK_D248 TK_D240, TK_DN(30)
#define TK_D256 TK_D248, TK_DN(31)

// A and B in shared memory: descriptors; `accumulate` 0 overwrites D. A in registers: the warp's 16 x 16 fragment.
template <class T, int N, int TransA, int TransB>
struct wgmma;

#define TK_WGMMA_SS(TYPE, N, A, B, P, TA, TB)                                                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE \
               "." TYPE " {" TK_R##N "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";\n}"                         \
               : TK_D##N                                                                                            \
               : "l"(a), "l"(b), "r"(accumulate), "n"(TransA), "n"(TransB)                                          \
               : "memory")
#define TK_WGMMA_RS(TYPE, N, A0, A1, A2, A3, B, P, TB)                                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE \
               "." TYPE " {" TK_R##N "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, %" #TB ";\n}"  \
               : TK_D##N                                                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TransB)                   \
               : "memory")

// x0 .. x6 are the operand numbers after the N / 2 accumulators.
#define TK_WGMMA(N, x0, x1, x2, x3, x4, x5, x6)                                              \
  template <class T, int TransA, int TransB>                                                 \
  struct wgmma<T, N, TransA, TransB> {                                                       \
    TK_DEVICE static void run(float (&d)[N / 2], u64 a, u64 b, int accumulate) {             \
      if constexpr (is_same<T, bf16>)                                                        \
        TK_WGMMA_SS("bf16", N, x0, x1, x2, x3, x4);                                          \
      else                                                                                   \
        TK_WGMMA_SS("f16", N, x0, x1, x2, x3, x4);                                           \
    }                                                                                        \
    TK_DEVICE static void run(float (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate) { \
      if constexpr (is_same<T, bf16>)                                                        \
        TK_WGMMA_RS("bf16", N, x0, x1, x2, x3, x4, x5, x6);                                  \
      else                                                                                   \
        TK_WGMMA_RS("f16", N, x0, x1, x2, x3, x4, x5, x6);                                   \
    }                                                                                        \
  };

TK_WGMMA(8, 4, 5, 6, 7, 8, 9, 10)
TK_WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
TK_WGMMA(24, 12, 13, 14, 15, 16, 17, 18)
TK_WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
TK_WGMMA(40, 20, 21, 22, 23, 24, 25, 26)
TK_WGMMA(48, 24, 25, 26, 27, 28, 29, 30)
TK_WGMMA(56, 28, 29, 30, 31, 32, 33, 34)
TK_WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
TK_WGMMA(72, 36, 37, 38, 39, 40, 41, 42)
TK_WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
TK_WGMMA(88, 44, 45, 46, 47, 48, 49, 50)
TK_WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
TK_WGMMA(104, 52, 53, 54, 55, 56, 57, 58)
TK_WGMMA(112, 56, 57, 58, 59, 60, 61, 62)
TK_WGMMA(120, 60, 61, 62, 63, 64, 65, 66)
TK_WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
TK_WGMMA(136, 68, 69, 70, 71, 72, 73, 74)
TK_WGMMA(144, 72, 73, 74, 75, 76, 77, 78)
TK_WGMMA(152, 76, 77, 78, 79, 80, 81, 82)
TK_WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
TK_WGMMA(168, 84, 85, 86, 87, 88, 89, 90)
TK_WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
TK_WGMMA(184, 92, 93, 94, 95, 96, 97, 98)
TK_WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
TK_WGMMA(200, 100, 101, 102, 103, 104, 105, 106)
TK_WGMMA(208, 104, 105, 106, 107, 108, 109, 110)
TK_WGMMA(216, 108, 109, 110, 111, 112, 113, 114)
TK_WGMMA(224, 112, 113, 114, 115, 116, 117, 118)
TK_WGMMA(232, 116, 117, 118, 119, 120, 121, 122)
TK_WGMMA(240, 120, 121, 122, 123, 124, 125, 126)
TK_WGMMA(248, 124, 125, 126, 127, 128, 129, 130)
TK_WGMMA(256, 128, 129, 130, 131, 132, 133, 134)

#undef TK_WGMMA
#undef TK_WGMMA_SS
#undef TK_WGMMA_RS
#undef TK_RN
#undef TK_DN

}  // namespace tk::ptx
