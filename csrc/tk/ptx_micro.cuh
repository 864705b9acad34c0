// Inline PTX of the microbenchmarks (csrc/microbench): clocks, and single instructions of every unit. One wrapper an
// instruction, named after it; the headings are the PTX ISA's own. All of them are volatile: what a loop times must
// stay in it, in order. tk.cuh does not include this file; a kernel that reads other CTAs' shared memory does.
#pragma once

#include "ptx.cuh"

namespace tk::ptx {

// ---- Special registers ------------------------------------------------------------------------------------------
TK_DEVICE u64 clock64() {  // cycles of this SM
  u64 now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
  return now;
}
// Read once `value` is there: a branch on it stands before the clock. It must not be 0.
TK_DEVICE u64 clock64_after(u64 value) {
  u64 now;
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.u64 p, %1, 0;\n@p trap;\nmov.u64 %0, %%clock64;\n}" : "=l"(now) : "l"(value) : "memory");
  return now;
}
TK_DEVICE u64 globaltimer() {  // nanoseconds, the same on every SM
  u64 now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}
TK_DEVICE u32 smid() {
  u32 sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  return sm;
}

// ---- Data movement: ld, st --------------------------------------------------------------------------------------
struct quad {
  u32 x[4];
};
#define TK_LOAD(NAME, SPACE, CONSTRAINT, ADDRESS)                                                                    \
  TK_DEVICE u64 NAME##_u64(ADDRESS at) {                                                                             \
    u64 v;                                                                                                           \
    asm volatile("ld." SPACE ".u64 %0, [%1];" : "=l"(v) : CONSTRAINT(at) : "memory");                                \
    return v;                                                                                                        \
  }                                                                                                                  \
  TK_DEVICE u32 NAME##_u32(ADDRESS at) {                                                                             \
    u32 v;                                                                                                           \
    asm volatile("ld." SPACE ".u32 %0, [%1];" : "=r"(v) : CONSTRAINT(at) : "memory");                                \
    return v;                                                                                                        \
  }                                                                                                                  \
  TK_DEVICE quad NAME##_v2(ADDRESS at) {                                                                             \
    quad v{};                                                                                                        \
    asm volatile("ld." SPACE ".v2.u32 {%0, %1}, [%2];" : "=r"(v.x[0]), "=r"(v.x[1]) : CONSTRAINT(at) : "memory");    \
    return v;                                                                                                        \
  }                                                                                                                  \
  TK_DEVICE quad NAME##_v4(ADDRESS at) {                                                                             \
    quad v;                                                                                                          \
    asm volatile("ld." SPACE ".v4.u32 {%0, %1, %2, %3}, [%4];"                                                       \
                 : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])                                            \
                 : CONSTRAINT(at)                                                                                    \
                 : "memory");                                                                                        \
    return v;                                                                                                        \
  }
TK_LOAD(load_ca, "global.ca", "l", const void*)  // cached in L1 and L2
TK_LOAD(load_cg, "global.cg", "l", const void*)  // cached in L2 only
TK_LOAD(load_shared, "shared::cta", "r", u32)
TK_LOAD(load_cluster, "shared::cluster", "r", u32)
#undef TK_LOAD

#define TK_STORE(NAME, SPACE, CONSTRAINT, ADDRESS)                                                                \
  TK_DEVICE void NAME##_u32(ADDRESS at, u32 v) {                                                                  \
    asm volatile("st." SPACE ".u32 [%0], %1;" ::CONSTRAINT(at), "r"(v) : "memory");                               \
  }                                                                                                               \
  TK_DEVICE void NAME##_v2(ADDRESS at, quad v) {                                                                  \
    asm volatile("st." SPACE ".v2.u32 [%0], {%1, %2};" ::CONSTRAINT(at), "r"(v.x[0]), "r"(v.x[1]) : "memory");    \
  }                                                                                                               \
  TK_DEVICE void NAME##_v4(ADDRESS at, quad v) {                                                                  \
    asm volatile("st." SPACE ".v4.u32 [%0], {%1, %2, %3, %4};" ::CONSTRAINT(at), "r"(v.x[0]), "r"(v.x[1]),        \
                 "r"(v.x[2]), "r"(v.x[3])                                                                         \
                 : "memory");                                                                                     \
  }
TK_STORE(store_global, "global", "l", void*)
TK_STORE(store_shared, "shared::cta", "r", u32)
TK_STORE(store_cluster, "shared::cluster", "r", u32)
#undef TK_STORE

// ---- Matrices between shared memory and registers: ldmatrix -----------------------------------------------------
TK_DEVICE void ldmatrix_x1(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared::cta.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
}
TK_DEVICE void ldmatrix_x2(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared::cta.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// ---- Parallel synchronisation and communication: atom, red, fence -----------------------------------------------
#define TK_ATOM(NAME, SPACE, CONSTRAINT, ADDRESS)                                                                   \
  TK_DEVICE u32 atom_add_##NAME(ADDRESS at, u32 v) {                                                                \
    u32 old;                                                                                                        \
    asm volatile("atom." SPACE ".add.u32 %0, [%1], %2;" : "=r"(old) : CONSTRAINT(at), "r"(v) : "memory");           \
    return old;                                                                                                     \
  }                                                                                                                 \
  TK_DEVICE u32 atom_cas_##NAME(ADDRESS at, u32 want, u32 v) {                                                      \
    u32 old;                                                                                                        \
    asm volatile("atom." SPACE ".cas.b32 %0, [%1], %2, %3;"                                                         \
                 : "=r"(old)                                                                                        \
                 : CONSTRAINT(at), "r"(want), "r"(v)                                                                \
                 : "memory");                                                                                       \
    return old;                                                                                                     \
  }                                                                                                                 \
  TK_DEVICE void red_add_##NAME(ADDRESS at, u32 v) {                                                                \
    asm volatile("red." SPACE ".add.u32 [%0], %1;" ::CONSTRAINT(at), "r"(v) : "memory");                            \
  }                                                                                                                 \
  TK_DEVICE void red_add_f32_##NAME(ADDRESS at, float v) {                                                          \
    asm volatile("red." SPACE ".add.f32 [%0], %1;" ::CONSTRAINT(at), "f"(v) : "memory");                            \
  }
TK_ATOM(global, "relaxed.gpu.global", "l", void*)
TK_ATOM(shared, "relaxed.cta.shared::cta", "r", u32)
#undef TK_ATOM
TK_DEVICE void red_add_v4_f32_global(void* at, float v) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(at), "f"(v) : "memory");
}
TK_DEVICE u32 load_acquire_gpu(const void* at) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
TK_DEVICE void red_release_gpu_add(void* at, u32 v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}
TK_DEVICE void fence_acq_rel_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
TK_DEVICE void cluster_arrive_relaxed() {  // orders nothing: no fence
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// ---- One 32-bit register in, one out: the units that csrc/microbench/alu.cu times -------------------------------
// x is the result before, p the one before that, b and c do not change. Each is one instruction of the machine where
// the comment does not say otherwise (tests/microbench reads the SASS): ptxas folds what can be folded over several
// steps, such as a sum of constants, a maximum of maxima, or a reciprocal of a reciprocal.
#define TK_UNIT(NAME, TEXT)                                          \
  struct NAME {                                                      \
    TK_DEVICE static u32 run(u32 x, u32 p, u32 b, u32 c) {           \
      u32 y;                                                         \
      asm volatile(TEXT : "=r"(y) : "r"(x), "r"(p), "r"(b), "r"(c)); \
      return y;                                                      \
    }                                                                \
  };
namespace unit {
// floating point
TK_UNIT(fadd, "add.rn.ftz.f32 %0, %1, %3;")
TK_UNIT(fmul, "mul.rn.ftz.f32 %0, %1, %3;")
TK_UNIT(ffma, "fma.rn.ftz.f32 %0, %1, %3, %4;")
TK_UNIT(fmax, "max.ftz.f32 %0, %1, %3;")
TK_UNIT(hfma2, "fma.rn.f16x2 %0, %1, %3, %4;")
TK_UNIT(bfma2, "fma.rn.bf16x2 %0, %1, %3, %4;")
// special functions
TK_UNIT(ex2, "ex2.approx.ftz.f32 %0, %1;")
TK_UNIT(ex2_f16x2, "ex2.approx.f16x2 %0, %1;")
TK_UNIT(lg2, "lg2.approx.ftz.f32 %0, %1;")
TK_UNIT(rcp, "{\n.reg .f32 t;\nadd.ftz.f32 t, %1, %3;\nrcp.approx.ftz.f32 %0, t;\n}")  // and an FADD
TK_UNIT(rsqrt, "rsqrt.approx.ftz.f32 %0, %1;")
TK_UNIT(sqrt, "sqrt.approx.ftz.f32 %0, %1;")
TK_UNIT(sin, "sin.approx.ftz.f32 %0, %1;")                 // and an FMUL
TK_UNIT(tanh, "tanh.approx.f32 %0, %1;")
TK_UNIT(tanh_f16x2, "tanh.approx.f16x2 %0, %1;")
// conversions
TK_UNIT(cvt_bf16x2_f32, "cvt.rn.bf16x2.f32 %0, %1, %3;")
TK_UNIT(cvt_f16x2_f32, "cvt.rn.f16x2.f32 %0, %1, %3;")
TK_UNIT(cvt_f32_f16, "{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;\n}")
TK_UNIT(cvt_e4m3x2_f32, "{\n.reg .b16 t;\ncvt.rn.satfinite.e4m3x2.f32 t, %1, %3;\ncvt.u32.u16 %0, t;\n}")
TK_UNIT(cvt_f16x2_e4m3x2, "{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.rn.f16x2.e4m3x2 %0, l;\n}")
TK_UNIT(cvt_f32_s32, "cvt.rn.f32.s32 %0, %1;")
TK_UNIT(cvt_s32_f32, "cvt.rni.ftz.s32.f32 %0, %1;")
// integers
TK_UNIT(iadd, "add.s32 %0, %1, %2;")
TK_UNIT(imad, "mad.lo.s32 %0, %1, %3, %4;")
TK_UNIT(lop3, "lop3.b32 %0, %1, %3, %4, 0x96;")
TK_UNIT(shf, "shf.l.wrap.b32 %0, %1, %3, %4;")
TK_UNIT(viaddmax, "{\n.reg .s32 t;\nadd.s32 t, %1, %3;\nmax.s32 %0, t, %4;\n}")
TK_UNIT(prmt, "prmt.b32 %0, %1, %3, %4;")
TK_UNIT(popc, "popc.b32 %0, %1;")
TK_UNIT(dp4a, "dp4a.s32.s32 %0, %3, %4, %1;")
// between lanes of a warp
TK_UNIT(shfl, "shfl.sync.bfly.b32 %0, %1, %3, 31, 0xffffffff;")
TK_UNIT(redux, "redux.sync.add.s32 %0, %1, 0xffffffff;")
TK_UNIT(ballot, "{\n.reg .pred p;\nsetp.ne.b32 p, %1, 0;\nvote.sync.ballot.b32 %0, p, 0xffffffff;\n}")
}  // namespace unit
#undef TK_UNIT

}  // namespace tk::ptx
