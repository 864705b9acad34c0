// The GEMM's kernels, C = act(A B + bias) + residual for every group; gemm.cuh describes their data flow and barriers.
// precision  products exact, sums and epilogue fp32, one rounding      limits  sm_90a; M, N, K below 2^31 - 512
// cost  a group: bytes 2 (MK + KN + MN), flops 2 M N K
#include "gemm.cuh"

#define TKPY_GEMM(NAME, T, A, B, ROUTE)                                                    \
  extern "C" __global__ void __launch_bounds__(tkpy::gemm::kThreads, 1)                    \
      NAME(const __grid_constant__ tkpy::gemm::Params p) {                                 \
    tkpy::gemm::Gemm<tk::T, tk::Major::A, tk::Major::B, tkpy::gemm::Route::ROUTE>::run(p); \
  }
#define TKPY_GEMM_LAYOUTS(T, ROUTE)                    \
  TKPY_GEMM(gemm_##T##_mk_nk_##ROUTE, T, k, k, ROUTE)  \
  TKPY_GEMM(gemm_##T##_mk_kn_##ROUTE, T, k, mn, ROUTE) \
  TKPY_GEMM(gemm_##T##_km_nk_##ROUTE, T, mn, k, ROUTE) \
  TKPY_GEMM(gemm_##T##_km_kn_##ROUTE, T, mn, mn, ROUTE)

TKPY_GEMM_LAYOUTS(bf16, tma)
TKPY_GEMM_LAYOUTS(fp16, tma)
TKPY_GEMM_LAYOUTS(bf16, generic)
TKPY_GEMM_LAYOUTS(fp16, generic)
