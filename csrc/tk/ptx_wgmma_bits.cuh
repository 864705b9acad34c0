// wgmma.mma_async of every type and shape, K-major operands, as the microbenchmarks need it: D += A B with accumulators
// as plain 32-bit registers, so that one chain serves fp32, s32 and packed fp16 sums. A and B each have 32 bytes of K.
//   wgmma_bits<Wgmma::e4m3, 64>::run(d, a, b)     a: descriptor, or the 4 registers of a warp's fragment
// PTX ISA, asynchronous warpgroup level matrix instructions: wgmma.mma_async (shapes and types; N of s8 is 8, 16, 24, 32
// and then multiples of 16). An asm statement needs its operands spelled out: the lists grow by one pair of registers.
#pragma once

#include "types.cuh"

namespace tk::ptx {

enum class Wgmma { bf16, f16, tf32, e4m3, e5m2, s8, f16_f16, e4m3_f16, e5m2_f16 };
// The last three sum in fp16: a lane has N / 4 registers instead of N / 2.
TK_HD constexpr int wgmma_registers(Wgmma kind, int n) { return kind >= Wgmma::f16_f16 ? n / 4 : n / 2; }

template <Wgmma Kind, int N>
struct wgmma_bits;

#define TK_D(i) "+r"(d[2 * i]), "+r"(d[2 * i + 1])
#define TK_TEXT1 "%0, %1"
#define TK_TEXT2 TK_TEXT1 ", %2, %3"
#define TK_TEXT3 TK_TEXT2 ", %4, %5"
#define TK_TEXT4 TK_TEXT3 ", %6, %7"
#define TK_TEXT5 TK_TEXT4 ", %8, %9"
#define TK_TEXT6 TK_TEXT5 ", %10, %11"
#define TK_TEXT7 TK_TEXT6 ", %12, %13"
#define TK_TEXT8 TK_TEXT7 ", %14, %15"
#define TK_TEXT9 TK_TEXT8 ", %16, %17"
#define TK_TEXT10 TK_TEXT9 ", %18, %19"
#define TK_TEXT11 TK_TEXT10 ", %20, %21"
#define TK_TEXT12 TK_TEXT11 ", %22, %23"
#define TK_TEXT13 TK_TEXT12 ", %24, %25"
#define TK_TEXT14 TK_TEXT13 ", %26, %27"
#define TK_TEXT15 TK_TEXT14 ", %28, %29"
#define TK_TEXT16 TK_TEXT15 ", %30, %31"
#define TK_TEXT17 TK_TEXT16 ", %32, %33"
#define TK_TEXT18 TK_TEXT17 ", %34, %35"
#define TK_TEXT19 TK_TEXT18 ", %36, %37"
#define TK_TEXT20 TK_TEXT19 ", %38, %39"
#define TK_TEXT21 TK_TEXT20 ", %40, %41"
#define TK_TEXT22 TK_TEXT21 ", %42, %43"
#define TK_TEXT23 TK_TEXT22 ", %44, %45"
#define TK_TEXT24 TK_TEXT23 ", %46, %47"
#define TK_TEXT25 TK_TEXT24 ", %48, %49"
#define TK_TEXT26 TK_TEXT25 ", %50, %51"
#define TK_TEXT27 TK_TEXT26 ", %52, %53"
#define TK_TEXT28 TK_TEXT27 ", %54, %55"
#define TK_TEXT29 TK_TEXT28 ", %56, %57"
#define TK_TEXT30 TK_TEXT29 ", %58, %59"
#define TK_TEXT31 TK_TEXT30 ", %60, %61"
#define TK_TEXT32 TK_TEXT31 ", %62, %63"
#define TK_TEXT33 TK_TEXT32 ", %64, %65"
#define TK_TEXT34 TK_TEXT33 ", %66, %67"
#define TK_TEXT35 TK_TEXT34 ", %68, %69"
#define TK_TEXT36 TK_TEXT35 ", %70, %71"
#define TK_TEXT37 TK_TEXT36 ", %72, %73"
#define TK_TEXT38 TK_TEXT37 ", %74, %75"
#define TK_TEXT39 TK_TEXT38 ", %76, %77"
#define TK_TEXT40 TK_TEXT39 ", %78, %79"
#define TK_TEXT41 TK_TEXT40 ", %80, %81"
#define TK_TEXT42 TK_TEXT41 ", %82, %83"
#define TK_TEXT43 TK_TEXT42 ", %84, %85"
#define TK_TEXT44 TK_TEXT43 ", %86, %87"
#define TK_TEXT45 TK_TEXT44 ", %88, %89"
#define TK_TEXT46 TK_TEXT45 ", %90, %91"
#define TK_TEXT47 TK_TEXT46 ", %92, %93"
#define TK_TEXT48 TK_TEXT47 ", %94, %95"
#define TK_TEXT49 TK_TEXT48 ", %96, %97"
#define TK_TEXT50 TK_TEXT49 ", %98, %99"
#define TK_TEXT51 TK_TEXT50 ", %100, %101"
#define TK_TEXT52 TK_TEXT51 ", %102, %103"
#define TK_TEXT53 TK_TEXT52 ", %104, %105"
#define TK_TEXT54 TK_TEXT53 ", %106, %107"
#define TK_TEXT55 TK_TEXT54 ", %108, %109"
#define TK_TEXT56 TK_TEXT55 ", %110, %111"
#define TK_TEXT57 TK_TEXT56 ", %112, %113"
#define TK_TEXT58 TK_TEXT57 ", %114, %115"
#define TK_TEXT59 TK_TEXT58 ", %116, %117"
#define TK_TEXT60 TK_TEXT59 ", %118, %119"
#define TK_TEXT61 TK_TEXT60 ", %120, %121"
#define TK_TEXT62 TK_TEXT61 ", %122, %123"
#define TK_TEXT63 TK_TEXT62 ", %124, %125"
#define TK_TEXT64 TK_TEXT63 ", %126, %127"
#define TK_REGS1 TK_D(0)
#define TK_REGS2 TK_REGS1, TK_D(1)
#define TK_REGS3 TK_REGS2, TK_D(2)
#define TK_REGS4 TK_REGS3, TK_D(3)
#define TK_REGS5 TK_REGS4, TK_D(4)
#define TK_REGS6 TK_REGS5, TK_D(5)
#define TK_REGS7 TK_REGS6, TK_D(6)
#define TK_REGS8 TK_REGS7, TK_D(7)
#define TK_REGS9 TK_REGS8, TK_D(8)
#define TK_REGS10 TK_REGS9, TK_D(9)
#define TK_REGS11 TK_REGS10, TK_D(10)
#define TK_REGS12 TK_REGS11, TK_D(11)
#define TK_REGS13 TK_REGS12, TK_D(12)
#define TK_REGS14 TK_REGS13, TK_D(13)
#define TK_REGS15 TK_REGS14, TK_D(14)
#define TK_REGS16 TK_REGS15, TK_D(15)
#define TK_REGS17 TK_REGS16, TK_D(16)
#define TK_REGS18 TK_REGS17, TK_D(17)
#define TK_REGS19 TK_REGS18, TK_D(18)
#define TK_REGS20 TK_REGS19, TK_D(19)
#define TK_REGS21 TK_REGS20, TK_D(20)
#define TK_REGS22 TK_REGS21, TK_D(21)
#define TK_REGS23 TK_REGS22, TK_D(22)
#define TK_REGS24 TK_REGS23, TK_D(23)
#define TK_REGS25 TK_REGS24, TK_D(24)
#define TK_REGS26 TK_REGS25, TK_D(25)
#define TK_REGS27 TK_REGS26, TK_D(26)
#define TK_REGS28 TK_REGS27, TK_D(27)
#define TK_REGS29 TK_REGS28, TK_D(28)
#define TK_REGS30 TK_REGS29, TK_D(29)
#define TK_REGS31 TK_REGS30, TK_D(30)
#define TK_REGS32 TK_REGS31, TK_D(31)
#define TK_REGS33 TK_REGS32, TK_D(32)
#define TK_REGS34 TK_REGS33, TK_D(33)
#define TK_REGS35 TK_REGS34, TK_D(34)
#define TK_REGS36 TK_REGS35, TK_D(35)
#define TK_REGS37 TK_REGS36, TK_D(36)
#define TK_REGS38 TK_REGS37, TK_D(37)
#define TK_REGS39 TK_REGS38, TK_D(38)
#define TK_REGS40 TK_REGS39, TK_D(39)
#define TK_REGS41 TK_REGS40, TK_D(40)
#define TK_REGS42 TK_REGS41, TK_D(41)
#define TK_REGS43 TK_REGS42, TK_D(42)
#define TK_REGS44 TK_REGS43, TK_D(43)
#define TK_REGS45 TK_REGS44, TK_D(44)
#define TK_REGS46 TK_REGS45, TK_D(45)
#define TK_REGS47 TK_REGS46, TK_D(46)
#define TK_REGS48 TK_REGS47, TK_D(47)
#define TK_REGS49 TK_REGS48, TK_D(48)
#define TK_REGS50 TK_REGS49, TK_D(49)
#define TK_REGS51 TK_REGS50, TK_D(50)
#define TK_REGS52 TK_REGS51, TK_D(51)
#define TK_REGS53 TK_REGS52, TK_D(52)
#define TK_REGS54 TK_REGS53, TK_D(53)
#define TK_REGS55 TK_REGS54, TK_D(54)
#define TK_REGS56 TK_REGS55, TK_D(55)
#define TK_REGS57 TK_REGS56, TK_D(56)
#define TK_REGS58 TK_REGS57, TK_D(57)
#define TK_REGS59 TK_REGS58, TK_D(58)
#define TK_REGS60 TK_REGS59, TK_D(59)
#define TK_REGS61 TK_REGS60, TK_D(60)
#define TK_REGS62 TK_REGS61, TK_D(61)
#define TK_REGS63 TK_REGS62, TK_D(62)
#define TK_REGS64 TK_REGS63, TK_D(63)

#define TK_RUN(PAIRS, BODY, ...) asm volatile(BODY : TK_REGS##PAIRS : __VA_ARGS__ : "memory")
// x0 .. x4 are the operand numbers after the accumulators.
#define TK_WGMMA(KIND, SHAPE, PAIRS, SS, RS, x0, x1, x2, x3, x4)                                                    \
  TK_DEVICE static void run(u32 (&d)[2 * PAIRS], u64 a, u64 b) {                                                    \
    TK_RUN(PAIRS, "wgmma.mma_async.sync.aligned." SHAPE " {" TK_TEXT##PAIRS "}, %" #x0 ", %" #x1 SS ";", "l"(a),    \
           "l"(b));                                                                                                 \
  }                                                                                                                 \
  TK_DEVICE static void run(u32 (&d)[2 * PAIRS], const u32 (&a)[4], u64 b) {                                        \
    TK_RUN(PAIRS,                                                                                                   \
           "wgmma.mma_async.sync.aligned." SHAPE " {" TK_TEXT##PAIRS "}, {%" #x0 ", %" #x1 ", %" #x2 ", %" #x3      \
           "}, %" #x4 RS ";",                                                                                       \
           "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                     \
  }
#define TK_SHAPE(KIND, N, SHAPE, PAIRS, SS, RS, ...)                    \
  template <>                                                           \
  struct wgmma_bits<Wgmma::KIND, N> {                                   \
    TK_WGMMA(KIND, "m64n" #N SHAPE, PAIRS, SS, RS, __VA_ARGS__)         \
  };
// Scale-d and the signs of A and B are 1; only 16-bit types have transpositions, and s8 has no signs.
#define TK_SHAPES_F32(N, PAIRS, ...)                                                                     \
  TK_SHAPE(bf16, N, "k16.f32.bf16.bf16", PAIRS, ", 1, 1, 1, 0, 0", ", 1, 1, 1, 0", __VA_ARGS__)          \
  TK_SHAPE(f16, N, "k16.f32.f16.f16", PAIRS, ", 1, 1, 1, 0, 0", ", 1, 1, 1, 0", __VA_ARGS__)             \
  TK_SHAPE(tf32, N, "k8.f32.tf32.tf32", PAIRS, ", 1, 1, 1", ", 1, 1, 1", __VA_ARGS__)                    \
  TK_SHAPE(e4m3, N, "k32.f32.e4m3.e4m3", PAIRS, ", 1, 1, 1", ", 1, 1, 1", __VA_ARGS__)                   \
  TK_SHAPE(e5m2, N, "k32.f32.e5m2.e5m2", PAIRS, ", 1, 1, 1", ", 1, 1, 1", __VA_ARGS__)
#define TK_SHAPES_S32(N, PAIRS, ...) TK_SHAPE(s8, N, "k32.s32.s8.s8", PAIRS, ", 1", ", 1", __VA_ARGS__)
#define TK_SHAPES_F16(N, PAIRS, ...)                                                                     \
  TK_SHAPE(f16_f16, N, "k16.f16.f16.f16", PAIRS, ", 1, 1, 1, 0, 0", ", 1, 1, 1, 0", __VA_ARGS__)         \
  TK_SHAPE(e4m3_f16, N, "k32.f16.e4m3.e4m3", PAIRS, ", 1, 1, 1", ", 1, 1, 1", __VA_ARGS__)               \
  TK_SHAPE(e5m2_f16, N, "k32.f16.e5m2.e5m2", PAIRS, ", 1, 1, 1", ", 1, 1, 1", __VA_ARGS__)

TK_SHAPES_F32(8, 2, 4, 5, 6, 7, 8)
TK_SHAPES_F32(16, 4, 8, 9, 10, 11, 12)
TK_SHAPES_F32(24, 6, 12, 13, 14, 15, 16)
TK_SHAPES_F32(32, 8, 16, 17, 18, 19, 20)
TK_SHAPES_F32(40, 10, 20, 21, 22, 23, 24)
TK_SHAPES_F32(48, 12, 24, 25, 26, 27, 28)
TK_SHAPES_F32(56, 14, 28, 29, 30, 31, 32)
TK_SHAPES_F32(64, 16, 32, 33, 34, 35, 36)
TK_SHAPES_F32(72, 18, 36, 37, 38, 39, 40)
TK_SHAPES_F32(80, 20, 40, 41, 42, 43, 44)
TK_SHAPES_F32(88, 22, 44, 45, 46, 47, 48)
TK_SHAPES_F32(96, 24, 48, 49, 50, 51, 52)
TK_SHAPES_F32(104, 26, 52, 53, 54, 55, 56)
TK_SHAPES_F32(112, 28, 56, 57, 58, 59, 60)
TK_SHAPES_F32(120, 30, 60, 61, 62, 63, 64)
TK_SHAPES_F32(128, 32, 64, 65, 66, 67, 68)
TK_SHAPES_F32(136, 34, 68, 69, 70, 71, 72)
TK_SHAPES_F32(144, 36, 72, 73, 74, 75, 76)
TK_SHAPES_F32(152, 38, 76, 77, 78, 79, 80)
TK_SHAPES_F32(160, 40, 80, 81, 82, 83, 84)
TK_SHAPES_F32(168, 42, 84, 85, 86, 87, 88)
TK_SHAPES_F32(176, 44, 88, 89, 90, 91, 92)
TK_SHAPES_F32(184, 46, 92, 93, 94, 95, 96)
TK_SHAPES_F32(192, 48, 96, 97, 98, 99, 100)
TK_SHAPES_F32(200, 50, 100, 101, 102, 103, 104)
TK_SHAPES_F32(208, 52, 104, 105, 106, 107, 108)
TK_SHAPES_F32(216, 54, 108, 109, 110, 111, 112)
TK_SHAPES_F32(224, 56, 112, 113, 114, 115, 116)
TK_SHAPES_F32(232, 58, 116, 117, 118, 119, 120)
TK_SHAPES_F32(240, 60, 120, 121, 122, 123, 124)
TK_SHAPES_F32(248, 62, 124, 125, 126, 127, 128)
TK_SHAPES_F32(256, 64, 128, 129, 130, 131, 132)
TK_SHAPES_S32(8, 2, 4, 5, 6, 7, 8)
TK_SHAPES_S32(16, 4, 8, 9, 10, 11, 12)
TK_SHAPES_S32(24, 6, 12, 13, 14, 15, 16)
TK_SHAPES_S32(32, 8, 16, 17, 18, 19, 20)
TK_SHAPES_S32(48, 12, 24, 25, 26, 27, 28)
TK_SHAPES_S32(64, 16, 32, 33, 34, 35, 36)
TK_SHAPES_S32(80, 20, 40, 41, 42, 43, 44)
TK_SHAPES_S32(96, 24, 48, 49, 50, 51, 52)
TK_SHAPES_S32(112, 28, 56, 57, 58, 59, 60)
TK_SHAPES_S32(128, 32, 64, 65, 66, 67, 68)
TK_SHAPES_S32(144, 36, 72, 73, 74, 75, 76)
TK_SHAPES_S32(160, 40, 80, 81, 82, 83, 84)
TK_SHAPES_S32(176, 44, 88, 89, 90, 91, 92)
TK_SHAPES_S32(192, 48, 96, 97, 98, 99, 100)
TK_SHAPES_S32(208, 52, 104, 105, 106, 107, 108)
TK_SHAPES_S32(224, 56, 112, 113, 114, 115, 116)
TK_SHAPES_S32(240, 60, 120, 121, 122, 123, 124)
TK_SHAPES_S32(256, 64, 128, 129, 130, 131, 132)
TK_SHAPES_F16(8, 1, 2, 3, 4, 5, 6)
TK_SHAPES_F16(16, 2, 4, 5, 6, 7, 8)
TK_SHAPES_F16(24, 3, 6, 7, 8, 9, 10)
TK_SHAPES_F16(32, 4, 8, 9, 10, 11, 12)
TK_SHAPES_F16(40, 5, 10, 11, 12, 13, 14)
TK_SHAPES_F16(48, 6, 12, 13, 14, 15, 16)
TK_SHAPES_F16(56, 7, 14, 15, 16, 17, 18)
TK_SHAPES_F16(64, 8, 16, 17, 18, 19, 20)
TK_SHAPES_F16(72, 9, 18, 19, 20, 21, 22)
TK_SHAPES_F16(80, 10, 20, 21, 22, 23, 24)
TK_SHAPES_F16(88, 11, 22, 23, 24, 25, 26)
TK_SHAPES_F16(96, 12, 24, 25, 26, 27, 28)
TK_SHAPES_F16(104, 13, 26, 27, 28, 29, 30)
TK_SHAPES_F16(112, 14, 28, 29, 30, 31, 32)
TK_SHAPES_F16(120, 15, 30, 31, 32, 33, 34)
TK_SHAPES_F16(128, 16, 32, 33, 34, 35, 36)
TK_SHAPES_F16(136, 17, 34, 35, 36, 37, 38)
TK_SHAPES_F16(144, 18, 36, 37, 38, 39, 40)
TK_SHAPES_F16(152, 19, 38, 39, 40, 41, 42)
TK_SHAPES_F16(160, 20, 40, 41, 42, 43, 44)
TK_SHAPES_F16(168, 21, 42, 43, 44, 45, 46)
TK_SHAPES_F16(176, 22, 44, 45, 46, 47, 48)
TK_SHAPES_F16(184, 23, 46, 47, 48, 49, 50)
TK_SHAPES_F16(192, 24, 48, 49, 50, 51, 52)
TK_SHAPES_F16(200, 25, 50, 51, 52, 53, 54)
TK_SHAPES_F16(208, 26, 52, 53, 54, 55, 56)
TK_SHAPES_F16(216, 27, 54, 55, 56, 57, 58)
TK_SHAPES_F16(224, 28, 56, 57, 58, 59, 60)
TK_SHAPES_F16(232, 29, 58, 59, 60, 61, 62)
TK_SHAPES_F16(240, 30, 60, 61, 62, 63, 64)
TK_SHAPES_F16(248, 31, 62, 63, 64, 65, 66)
TK_SHAPES_F16(256, 32, 64, 65, 66, 67, 68)

#undef TK_SHAPES_F32
#undef TK_SHAPES_S32
#undef TK_SHAPES_F16
#undef TK_SHAPE
#undef TK_WGMMA
#undef TK_RUN
#undef TK_D

}  // namespace tk::ptx
