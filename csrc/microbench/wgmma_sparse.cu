// Sparse wgmma, A with two of four values (tf32: one of two): see wgmma.cuh for the loop, and for precision and limits.
// in   metadata: which values A keeps, the same word for every lane
//      a k-step is 32 bytes of A's values and 64 of B: two of them in a row of 128 bytes, which the four steps take in turn
// kernels  wgmma_sparse_<type>_n<N>_<ss|rs>       cost  2 * 64 * N * K flops as if A were dense, K = 64 bytes of the type
#include "tk/ptx_wgmma_sparse.cuh"
#include "wgmma.cuh"

namespace microbench {

#define SPARSE(NAME, T) SPARSE_N(NAME, T, 8) SPARSE_N(NAME, T, 64) SPARSE_N(NAME, T, 128) SPARSE_N(NAME, T, 256)
#define SPARSE_N(NAME, T, N) SPARSE_KERNEL(NAME, T, N, ss, false) SPARSE_KERNEL(NAME, T, N, rs, true)
#define SPARSE_KERNEL(NAME, T, N, SOURCE, IN_REGISTERS)                                                            \
  MICROBENCH(256) wgmma_sparse_##NAME##_n##N##_##SOURCE(Record* records, u32* sink, const uint4* a, const uint4* b, \
                                                        u32 metadata, u32 singles, u32 groups) {                    \
    run_wgmma<float, N, IN_REGISTERS>(records, sink, a, b, singles, groups,                                         \
                                      [&](auto& d, const auto& a_step, u64 b_first, u64 step) {                     \
      ptx::wgmma_sparse<ptx::wgmma_sparse_form<T>>(d, a_step, b_first + encode_offset(64) * (step % 2), metadata);  \
    });                                                                                                             \
  }
SPARSE(f16, fp16) SPARSE(tf32, tf32) SPARSE(e4m3, e4m3)

}  // namespace microbench
