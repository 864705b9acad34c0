// The GEMM's gated kernels, C = act(A B) * (A' B2) for every group; gemm.cuh describes their data flow and barriers.
// precision  products exact, sums, activation and gate fp32, one rounding      limits  sm_90a; M, N, K below 2^31 - 512
// cost  a group: bytes 2 (MK + 2 KN + MN), A twice where there are two, flops 4 M N K
#include "gemm.cuh"

#define TKPY_GATED(NAME, T, ROUTE, GATE)                                                                  \
  extern "C" __global__ void __launch_bounds__(tkpy::gemm::kThreads, 1)                                   \
      NAME(const __grid_constant__ tkpy::gemm::Params p) {                                                \
    using namespace tkpy::gemm;                                                                           \
    Gemm<tk::T, tk::Major::k, tk::Major::k, Route::ROUTE, Gate::GATE>::run(p);                            \
  }
#define TKPY_GATED_INPUTS(T, ROUTE)                          \
  TKPY_GATED(gemm_gated_##T##_shared_##ROUTE, T, ROUTE, shared) \
  TKPY_GATED(gemm_gated_##T##_two_##ROUTE, T, ROUTE, two)

TKPY_GATED_INPUTS(bf16, tma)
TKPY_GATED_INPUTS(fp16, tma)
TKPY_GATED_INPUTS(bf16, generic)
TKPY_GATED_INPUTS(fp16, generic)
