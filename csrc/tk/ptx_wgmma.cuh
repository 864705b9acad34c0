// wgmma.mma_async m64nNkK (PTX ISA, asynchronous warpgroup level matrix instructions): every N, every operand type of
// sm_90a, A from shared memory or from registers. One template an operand form; the accumulators' number picks N.
// An asm statement needs its operands spelled out: the lists below grow by four registers a line. Types and flags enter
// the text through the constraint "C" (CUDA inline PTX, array of const char).
#pragma once

#include "types.cuh"

namespace tk::ptx {

// ---- The forms: accumulator, A, B; `depth` is the K of one instruction (32 bytes of either operand) ---------------
// Flags after the predicate: scales of A and B (1: as they are), then transpositions, which only 16-bit operands in
// shared memory have. Integers have no flags.
enum class WgmmaFlags { none, scales, transposes };

template <class D, class A, class B>
struct wgmma_form {
  static constexpr bool exists = false;
};
#define TK_FORM(D, A, B, DEPTH, FLAGS, TEXT)                   \
  template <>                                                  \
  struct wgmma_form<D, A, B> {                                 \
    static constexpr bool exists = true;                       \
    static constexpr int depth = DEPTH;                        \
    static constexpr WgmmaFlags flags = WgmmaFlags::FLAGS;     \
    static constexpr char text[] = "k" #DEPTH "." TEXT;        \
  };
TK_FORM(float, bf16, bf16, 16, transposes, "f32.bf16.bf16")
TK_FORM(float, fp16, fp16, 16, transposes, "f32.f16.f16")
TK_FORM(fp16, fp16, fp16, 16, transposes, "f16.f16.f16")
TK_FORM(float, tf32, tf32, 8, scales, "f32.tf32.tf32")
TK_FORM(float, e4m3, e4m3, 32, scales, "f32.e4m3.e4m3")
TK_FORM(float, e4m3, e5m2, 32, scales, "f32.e4m3.e5m2")
TK_FORM(float, e5m2, e4m3, 32, scales, "f32.e5m2.e4m3")
TK_FORM(float, e5m2, e5m2, 32, scales, "f32.e5m2.e5m2")
TK_FORM(fp16, e4m3, e4m3, 32, scales, "f16.e4m3.e4m3")
TK_FORM(fp16, e4m3, e5m2, 32, scales, "f16.e4m3.e5m2")
TK_FORM(fp16, e5m2, e4m3, 32, scales, "f16.e5m2.e4m3")
TK_FORM(fp16, e5m2, e5m2, 32, scales, "f16.e5m2.e5m2")
TK_FORM(int, int8, int8, 32, none, "s32.s8.s8")
TK_FORM(int, int8, uint8, 32, none, "s32.s8.u8")
TK_FORM(int, uint8, int8, 32, none, "s32.u8.s8")
TK_FORM(int, uint8, uint8, 32, none, "s32.u8.u8")
#undef TK_FORM

// What follows the predicate. A in registers has no transposition of its own.
template <WgmmaFlags Flags, bool RegisterA, int TransA, int TransB>
struct wgmma_tail {
  static constexpr char text[] = "";
};
template <bool RegisterA>
struct wgmma_tail<WgmmaFlags::scales, RegisterA, 0, 0> {
  static constexpr char text[] = ", 1, 1";
};
#define TK_TAIL(TA, TB)                                           \
  template <>                                                     \
  struct wgmma_tail<WgmmaFlags::transposes, false, TA, TB> {      \
    static constexpr char text[] = ", 1, 1, " #TA ", " #TB;       \
  };
TK_TAIL(0, 0)
TK_TAIL(0, 1)
TK_TAIL(1, 0)
TK_TAIL(1, 1)
#undef TK_TAIL
template <int TransB>
struct wgmma_tail<WgmmaFlags::transposes, true, 0, TransB> {
  static constexpr char text[] = ", 1, 1, 0";
};
template <>
struct wgmma_tail<WgmmaFlags::transposes, true, 0, 1> {
  static constexpr char text[] = ", 1, 1, 1";
};

// ---- Lists: names and operands of the first n accumulators; `c` is their constraint -----------------------------
#define TK_R4 "%0, %1, %2, %3"
#define TK_R8 TK_R4 ", %4, %5, %6, %7"
#define TK_R12 TK_R8 ", %8, %9, %10, %11"
#define TK_R16 TK_R12 ", %12, %13, %14, %15"
#define TK_R20 TK_R16 ", %16, %17, %18, %19"
#define TK_R24 TK_R20 ", %20, %21, %22, %23"
#define TK_R28 TK_R24 ", %24, %25, %26, %27"
#define TK_R32 TK_R28 ", %28, %29, %30, %31"
#define TK_R36 TK_R32 ", %32, %33, %34, %35"
#define TK_R40 TK_R36 ", %36, %37, %38, %39"
#define TK_R44 TK_R40 ", %40, %41, %42, %43"
#define TK_R48 TK_R44 ", %44, %45, %46, %47"
#define TK_R52 TK_R48 ", %48, %49, %50, %51"
#define TK_R56 TK_R52 ", %52, %53, %54, %55"
#define TK_R60 TK_R56 ", %56, %57, %58, %59"
#define TK_R64 TK_R60 ", %60, %61, %62, %63"
#define TK_R68 TK_R64 ", %64, %65, %66, %67"
#define TK_R72 TK_R68 ", %68, %69, %70, %71"
#define TK_R76 TK_R72 ", %72, %73, %74, %75"
#define TK_R80 TK_R76 ", %76, %77, %78, %79"
#define TK_R84 TK_R80 ", %80, %81, %82, %83"
#define TK_R88 TK_R84 ", %84, %85, %86, %87"
#define TK_R92 TK_R88 ", %88, %89, %90, %91"
#define TK_R96 TK_R92 ", %92, %93, %94, %95"
#define TK_R100 TK_R96 ", %96, %97, %98, %99"
#define TK_R104 TK_R100 ", %100, %101, %102, %103"
#define TK_R108 TK_R104 ", %104, %105, %106, %107"
#define TK_R112 TK_R108 ", %108, %109, %110, %111"
#define TK_R116 TK_R112 ", %112, %113, %114, %115"
#define TK_R120 TK_R116 ", %116, %117, %118, %119"
#define TK_R124 TK_R120 ", %120, %121, %122, %123"
#define TK_R128 TK_R124 ", %124, %125, %126, %127"
#define TK_D4(c) c(d[0]), c(d[1]), c(d[2]), c(d[3])
#define TK_D8(c) TK_D4(c), c(d[4]), c(d[5]), c(d[6]), c(d[7])
#define TK_D12(c) TK_D8(c), c(d[8]), c(d[9]), c(d[10]), c(d[11])
#define TK_D16(c) TK_D12(c), c(d[12]), c(d[13]), c(d[14]), c(d[15])
#define TK_D20(c) TK_D16(c), c(d[16]), c(d[17]), c(d[18]), c(d[19])
#define TK_D24(c) TK_D20(c), c(d[20]), c(d[21]), c(d[22]), c(d[23])
#define TK_D28(c) TK_D24(c), c(d[24]), c(d[25]), c(d[26]), c(d[27])
#define TK_D32(c) TK_D28(c), c(d[28]), c(d[29]), c(d[30]), c(d[31])
#define TK_D36(c) TK_D32(c), c(d[32]), c(d[33]), c(d[34]), c(d[35])
#define TK_D40(c) TK_D36(c), c(d[36]), c(d[37]), c(d[38]), c(d[39])
#define TK_D44(c) TK_D40(c), c(d[40]), c(d[41]), c(d[42]), c(d[43])
#define TK_D48(c) TK_D44(c), c(d[44]), c(d[45]), c(d[46]), c(d[47])
#define TK_D52(c) TK_D48(c), c(d[48]), c(d[49]), c(d[50]), c(d[51])
#define TK_D56(c) TK_D52(c), c(d[52]), c(d[53]), c(d[54]), c(d[55])
#define TK_D60(c) TK_D56(c), c(d[56]), c(d[57]), c(d[58]), c(d[59])
#define TK_D64(c) TK_D60(c), c(d[60]), c(d[61]), c(d[62]), c(d[63])
#define TK_D68(c) TK_D64(c), c(d[64]), c(d[65]), c(d[66]), c(d[67])
#define TK_D72(c) TK_D68(c), c(d[68]), c(d[69]), c(d[70]), c(d[71])
#define TK_D76(c) TK_D72(c), c(d[72]), c(d[73]), c(d[74]), c(d[75])
#define TK_D80(c) TK_D76(c), c(d[76]), c(d[77]), c(d[78]), c(d[79])
#define TK_D84(c) TK_D80(c), c(d[80]), c(d[81]), c(d[82]), c(d[83])
#define TK_D88(c) TK_D84(c), c(d[84]), c(d[85]), c(d[86]), c(d[87])
#define TK_D92(c) TK_D88(c), c(d[88]), c(d[89]), c(d[90]), c(d[91])
#define TK_D96(c) TK_D92(c), c(d[92]), c(d[93]), c(d[94]), c(d[95])
#define TK_D100(c) TK_D96(c), c(d[96]), c(d[97]), c(d[98]), c(d[99])
#define TK_D104(c) TK_D100(c), c(d[100]), c(d[101]), c(d[102]), c(d[103])
#define TK_D108(c) TK_D104(c), c(d[104]), c(d[105]), c(d[106]), c(d[107])
#define TK_D112(c) TK_D108(c), c(d[108]), c(d[109]), c(d[110]), c(d[111])
#define TK_D116(c) TK_D112(c), c(d[112]), c(d[113]), c(d[114]), c(d[115])
#define TK_D120(c) TK_D116(c), c(d[116]), c(d[117]), c(d[118]), c(d[119])
#define TK_D124(c) TK_D120(c), c(d[120]), c(d[121]), c(d[122]), c(d[123])
#define TK_D128(c) TK_D124(c), c(d[124]), c(d[125]), c(d[126]), c(d[127])
// Packed 16-bit accumulators of an odd number of n8 blocks: two more than a multiple of four.
#define TK_R2 "%0, %1"
#define TK_R6 TK_R4 ", %4, %5"
#define TK_R10 TK_R8 ", %8, %9"
#define TK_R14 TK_R12 ", %12, %13"
#define TK_R18 TK_R16 ", %16, %17"
#define TK_R22 TK_R20 ", %20, %21"
#define TK_R26 TK_R24 ", %24, %25"
#define TK_R30 TK_R28 ", %28, %29"
#define TK_R34 TK_R32 ", %32, %33"
#define TK_R38 TK_R36 ", %36, %37"
#define TK_R42 TK_R40 ", %40, %41"
#define TK_R46 TK_R44 ", %44, %45"
#define TK_R50 TK_R48 ", %48, %49"
#define TK_R54 TK_R52 ", %52, %53"
#define TK_R58 TK_R56 ", %56, %57"
#define TK_R62 TK_R60 ", %60, %61"
#define TK_D2(c) c(d[0]), c(d[1])
#define TK_D6(c) TK_D4(c), c(d[4]), c(d[5])
#define TK_D10(c) TK_D8(c), c(d[8]), c(d[9])
#define TK_D14(c) TK_D12(c), c(d[12]), c(d[13])
#define TK_D18(c) TK_D16(c), c(d[16]), c(d[17])
#define TK_D22(c) TK_D20(c), c(d[20]), c(d[21])
#define TK_D26(c) TK_D24(c), c(d[24]), c(d[25])
#define TK_D30(c) TK_D28(c), c(d[28]), c(d[29])
#define TK_D34(c) TK_D32(c), c(d[32]), c(d[33])
#define TK_D38(c) TK_D36(c), c(d[36]), c(d[37])
#define TK_D42(c) TK_D40(c), c(d[40]), c(d[41])
#define TK_D46(c) TK_D44(c), c(d[44]), c(d[45])
#define TK_D50(c) TK_D48(c), c(d[48]), c(d[49])
#define TK_D54(c) TK_D52(c), c(d[52]), c(d[53])
#define TK_D58(c) TK_D56(c), c(d[56]), c(d[57])
#define TK_D62(c) TK_D60(c), c(d[60]), c(d[61])

// ---- The instruction ---------------------------------------------------------------------------------------------
// `Form` is a wgmma_form; `accumulate` 0 overwrites D. x0 .. x7 are the operand numbers after the accumulators. C is the
// constraint and REG the type of an accumulator register; N its columns: two packed 16-bit values, or one of 32
// bits.
#define TK_WGMMA(COUNT, C, REG, N, x0, x1, x2, x3, x4, x5, x6, x7)                                               \
  template <class Form, int TransA, int TransB>                                                                      \
  TK_DEVICE void wgmma(REG (&d)[COUNT], u64 a, u64 b, int accumulate) {                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #x2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #x3      \
                 " {" TK_R##COUNT "}, %" #x0 ", %" #x1 ", p%" #x4 ";\n}"                                             \
                 : TK_D##COUNT(C)                                                                                    \
                 : "l"(a), "l"(b), "r"(accumulate), "C"(Form::text),                                                 \
                   "C"(wgmma_tail<Form::flags, false, TransA, TransB>::text)                                         \
                 : "memory");                                                                                        \
  }                                                                                                                  \
  template <class Form, int TransB>                                                                                  \
  TK_DEVICE void wgmma(REG (&d)[COUNT], const u32 (&a)[4], u64 b, int accumulate) {                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #x5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #x6      \
                 " {" TK_R##COUNT "}, {%" #x0 ", %" #x1 ", %" #x2 ", %" #x3 "}, %" #x4 ", p%" #x7 ";\n}"             \
                 : TK_D##COUNT(C)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "C"(Form::text),             \
                   "C"(wgmma_tail<Form::flags, true, 0, TransB>::text)                                               \
                 : "memory");                                                                                        \
  }

TK_WGMMA(4, "+f", float, 8, 4, 5, 6, 7, 8, 9, 10, 11)
TK_WGMMA(8, "+f", float, 16, 8, 9, 10, 11, 12, 13, 14, 15)
TK_WGMMA(12, "+f", float, 24, 12, 13, 14, 15, 16, 17, 18, 19)
TK_WGMMA(16, "+f", float, 32, 16, 17, 18, 19, 20, 21, 22, 23)
TK_WGMMA(20, "+f", float, 40, 20, 21, 22, 23, 24, 25, 26, 27)
TK_WGMMA(24, "+f", float, 48, 24, 25, 26, 27, 28, 29, 30, 31)
TK_WGMMA(28, "+f", float, 56, 28, 29, 30, 31, 32, 33, 34, 35)
TK_WGMMA(32, "+f", float, 64, 32, 33, 34, 35, 36, 37, 38, 39)
TK_WGMMA(36, "+f", float, 72, 36, 37, 38, 39, 40, 41, 42, 43)
TK_WGMMA(40, "+f", float, 80, 40, 41, 42, 43, 44, 45, 46, 47)
TK_WGMMA(44, "+f", float, 88, 44, 45, 46, 47, 48, 49, 50, 51)
TK_WGMMA(48, "+f", float, 96, 48, 49, 50, 51, 52, 53, 54, 55)
TK_WGMMA(52, "+f", float, 104, 52, 53, 54, 55, 56, 57, 58, 59)
TK_WGMMA(56, "+f", float, 112, 56, 57, 58, 59, 60, 61, 62, 63)
TK_WGMMA(60, "+f", float, 120, 60, 61, 62, 63, 64, 65, 66, 67)
TK_WGMMA(64, "+f", float, 128, 64, 65, 66, 67, 68, 69, 70, 71)
TK_WGMMA(68, "+f", float, 136, 68, 69, 70, 71, 72, 73, 74, 75)
TK_WGMMA(72, "+f", float, 144, 72, 73, 74, 75, 76, 77, 78, 79)
TK_WGMMA(76, "+f", float, 152, 76, 77, 78, 79, 80, 81, 82, 83)
TK_WGMMA(80, "+f", float, 160, 80, 81, 82, 83, 84, 85, 86, 87)
TK_WGMMA(84, "+f", float, 168, 84, 85, 86, 87, 88, 89, 90, 91)
TK_WGMMA(88, "+f", float, 176, 88, 89, 90, 91, 92, 93, 94, 95)
TK_WGMMA(92, "+f", float, 184, 92, 93, 94, 95, 96, 97, 98, 99)
TK_WGMMA(96, "+f", float, 192, 96, 97, 98, 99, 100, 101, 102, 103)
TK_WGMMA(100, "+f", float, 200, 100, 101, 102, 103, 104, 105, 106, 107)
TK_WGMMA(104, "+f", float, 208, 104, 105, 106, 107, 108, 109, 110, 111)
TK_WGMMA(108, "+f", float, 216, 108, 109, 110, 111, 112, 113, 114, 115)
TK_WGMMA(112, "+f", float, 224, 112, 113, 114, 115, 116, 117, 118, 119)
TK_WGMMA(116, "+f", float, 232, 116, 117, 118, 119, 120, 121, 122, 123)
TK_WGMMA(120, "+f", float, 240, 120, 121, 122, 123, 124, 125, 126, 127)
TK_WGMMA(124, "+f", float, 248, 124, 125, 126, 127, 128, 129, 130, 131)
TK_WGMMA(128, "+f", float, 256, 128, 129, 130, 131, 132, 133, 134, 135)
TK_WGMMA(4, "+r", int, 8, 4, 5, 6, 7, 8, 9, 10, 11)
TK_WGMMA(8, "+r", int, 16, 8, 9, 10, 11, 12, 13, 14, 15)
TK_WGMMA(12, "+r", int, 24, 12, 13, 14, 15, 16, 17, 18, 19)
TK_WGMMA(16, "+r", int, 32, 16, 17, 18, 19, 20, 21, 22, 23)
TK_WGMMA(24, "+r", int, 48, 24, 25, 26, 27, 28, 29, 30, 31)
TK_WGMMA(32, "+r", int, 64, 32, 33, 34, 35, 36, 37, 38, 39)
TK_WGMMA(40, "+r", int, 80, 40, 41, 42, 43, 44, 45, 46, 47)
TK_WGMMA(48, "+r", int, 96, 48, 49, 50, 51, 52, 53, 54, 55)
TK_WGMMA(56, "+r", int, 112, 56, 57, 58, 59, 60, 61, 62, 63)
TK_WGMMA(64, "+r", int, 128, 64, 65, 66, 67, 68, 69, 70, 71)
TK_WGMMA(72, "+r", int, 144, 72, 73, 74, 75, 76, 77, 78, 79)
TK_WGMMA(80, "+r", int, 160, 80, 81, 82, 83, 84, 85, 86, 87)
TK_WGMMA(88, "+r", int, 176, 88, 89, 90, 91, 92, 93, 94, 95)
TK_WGMMA(96, "+r", int, 192, 96, 97, 98, 99, 100, 101, 102, 103)
TK_WGMMA(104, "+r", int, 208, 104, 105, 106, 107, 108, 109, 110, 111)
TK_WGMMA(112, "+r", int, 224, 112, 113, 114, 115, 116, 117, 118, 119)
TK_WGMMA(120, "+r", int, 240, 120, 121, 122, 123, 124, 125, 126, 127)
TK_WGMMA(128, "+r", int, 256, 128, 129, 130, 131, 132, 133, 134, 135)
TK_WGMMA(4, "+r", u32, 16, 4, 5, 6, 7, 8, 9, 10, 11)
TK_WGMMA(8, "+r", u32, 32, 8, 9, 10, 11, 12, 13, 14, 15)
TK_WGMMA(12, "+r", u32, 48, 12, 13, 14, 15, 16, 17, 18, 19)
TK_WGMMA(16, "+r", u32, 64, 16, 17, 18, 19, 20, 21, 22, 23)
TK_WGMMA(20, "+r", u32, 80, 20, 21, 22, 23, 24, 25, 26, 27)
TK_WGMMA(24, "+r", u32, 96, 24, 25, 26, 27, 28, 29, 30, 31)
TK_WGMMA(28, "+r", u32, 112, 28, 29, 30, 31, 32, 33, 34, 35)
TK_WGMMA(32, "+r", u32, 128, 32, 33, 34, 35, 36, 37, 38, 39)
TK_WGMMA(36, "+r", u32, 144, 36, 37, 38, 39, 40, 41, 42, 43)
TK_WGMMA(40, "+r", u32, 160, 40, 41, 42, 43, 44, 45, 46, 47)
TK_WGMMA(44, "+r", u32, 176, 44, 45, 46, 47, 48, 49, 50, 51)
TK_WGMMA(48, "+r", u32, 192, 48, 49, 50, 51, 52, 53, 54, 55)
TK_WGMMA(52, "+r", u32, 208, 52, 53, 54, 55, 56, 57, 58, 59)
TK_WGMMA(56, "+r", u32, 224, 56, 57, 58, 59, 60, 61, 62, 63)
TK_WGMMA(60, "+r", u32, 240, 60, 61, 62, 63, 64, 65, 66, 67)
TK_WGMMA(64, "+r", u32, 256, 64, 65, 66, 67, 68, 69, 70, 71)
TK_WGMMA(2, "+r", u32, 8, 2, 3, 4, 5, 6, 7, 8, 9)
TK_WGMMA(6, "+r", u32, 24, 6, 7, 8, 9, 10, 11, 12, 13)
TK_WGMMA(10, "+r", u32, 40, 10, 11, 12, 13, 14, 15, 16, 17)
TK_WGMMA(14, "+r", u32, 56, 14, 15, 16, 17, 18, 19, 20, 21)
TK_WGMMA(18, "+r", u32, 72, 18, 19, 20, 21, 22, 23, 24, 25)
TK_WGMMA(22, "+r", u32, 88, 22, 23, 24, 25, 26, 27, 28, 29)
TK_WGMMA(26, "+r", u32, 104, 26, 27, 28, 29, 30, 31, 32, 33)
TK_WGMMA(30, "+r", u32, 120, 30, 31, 32, 33, 34, 35, 36, 37)
TK_WGMMA(34, "+r", u32, 136, 34, 35, 36, 37, 38, 39, 40, 41)
TK_WGMMA(38, "+r", u32, 152, 38, 39, 40, 41, 42, 43, 44, 45)
TK_WGMMA(42, "+r", u32, 168, 42, 43, 44, 45, 46, 47, 48, 49)
TK_WGMMA(46, "+r", u32, 184, 46, 47, 48, 49, 50, 51, 52, 53)
TK_WGMMA(50, "+r", u32, 200, 50, 51, 52, 53, 54, 55, 56, 57)
TK_WGMMA(54, "+r", u32, 216, 54, 55, 56, 57, 58, 59, 60, 61)
TK_WGMMA(58, "+r", u32, 232, 58, 59, 60, 61, 62, 63, 64, 65)
TK_WGMMA(62, "+r", u32, 248, 62, 63, 64, 65, 66, 67, 68, 69)

#undef TK_WGMMA

}  // namespace tk::ptx
