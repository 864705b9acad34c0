// wgmma.mma_async.sp m64nNkK (PTX ISA, asynchronous warpgroup level matrix instructions, sparse): A keeps two of four
// values (of tf32 one of two), so that one instruction goes through twice the K of the dense one on the same bytes of A
// and twice those of B. `metadata` says which, by lanes as the ISA draws it; the threads of selector 0 give it. Only the
// shapes that are measured (csrc/microbench/wgmma_sparse.cu): N = 8, 64, 128, 256, sums in fp32.
#pragma once

#include "ptx_wgmma.cuh"

namespace tk::ptx {

template <class A>
struct wgmma_sparse_form {
  static constexpr bool exists = false;
};
#define TK_FORM(A, DEPTH, FLAGS, TEXT)                     \
  template <>                                              \
  struct wgmma_sparse_form<A> {                            \
    static constexpr bool exists = true;                   \
    static constexpr int depth = DEPTH;                    \
    static constexpr WgmmaFlags flags = WgmmaFlags::FLAGS; \
    static constexpr char text[] = "k" #DEPTH "." TEXT;    \
  };
TK_FORM(fp16, 32, transposes, "f32.f16.f16")
TK_FORM(tf32, 16, scales, "f32.tf32.tf32")
TK_FORM(e4m3, 64, scales, "f32.e4m3.e4m3")
#undef TK_FORM

// `Form` is a wgmma_sparse_form; D is added to. x0 .. x7 are the operand numbers after the accumulators.
#define TK_WGMMA_SPARSE(COUNT, N, x0, x1, x2, x3, x4, x5, x6, x7)                                                     \
  template <class Form>                                                                                               \
  TK_DEVICE void wgmma_sparse(float (&d)[COUNT], u64 a, u64 b, u32 metadata) {                                        \
    asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #N "%" #x3 " {" TK_R##COUNT "}, %" #x0 ", %" #x1 ", %" #x2    \
                 ", 0, 1%" #x4 ";"                                                                                    \
                 : TK_D##COUNT("+f")                                                                                  \
                 : "l"(a), "l"(b), "r"(metadata), "C"(Form::text), "C"(wgmma_tail<Form::flags, false, 0, 0>::text)    \
                 : "memory");                                                                                         \
  }                                                                                                                   \
  template <class Form>                                                                                               \
  TK_DEVICE void wgmma_sparse(float (&d)[COUNT], const u32 (&a)[4], u64 b, u32 metadata) {                            \
    asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #N "%" #x6 " {" TK_R##COUNT "}, {%" #x0 ", %" #x1 ", %" #x2   \
                 ", %" #x3 "}, %" #x4 ", %" #x5 ", 0, 1%" #x7 ";"                                                     \
                 : TK_D##COUNT("+f")                                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata), "C"(Form::text),                \
                   "C"(wgmma_tail<Form::flags, true, 0, 0>::text)                                                     \
                 : "memory");                                                                                         \
  }
TK_WGMMA_SPARSE(4, 8, 4, 5, 6, 7, 8, 9, 10, 11)
TK_WGMMA_SPARSE(32, 64, 32, 33, 34, 35, 36, 37, 38, 39)
TK_WGMMA_SPARSE(64, 128, 64, 65, 66, 67, 68, 69, 70, 71)
TK_WGMMA_SPARSE(128, 256, 128, 129, 130, 131, 132, 133, 134, 135)
#undef TK_WGMMA_SPARSE

}  // namespace tk::ptx
