// The GEMM's gated kernels, C = act(A B) * (A' B2) for every group, and the first product of their backward, whose
// epilogue takes dh through the gate; gemm.cuh describes their data flow and barriers.
// precision  products exact, sums, activation and gate fp32, one rounding      limits  sm_90a; M, N, K below 2^31 - 512
// cost  a group: bytes 2 (MK + 2 KN + MN), A twice where there are two, 4 MN more where gate and value are kept;
//       flops 4 M N K. slopes: bytes 2 (MK + KN + 5 MN), flops 2 M N K
#include "gemm.cuh"

#define TKPY_GATED(NAME, T, B, ROUTE, GATE)                               \
  extern "C" __global__ void __launch_bounds__(tkpy::gemm::kThreads, 1)   \
      NAME(const __grid_constant__ tkpy::gemm::Params p) {                \
    using namespace tkpy::gemm;                                           \
    Gemm<tk::T, tk::Major::k, tk::Major::B, Route::ROUTE, Gate::GATE>::run(p); \
  }
#define TKPY_GATED_INPUTS(T, ROUTE)                                \
  TKPY_GATED(gemm_gated_##T##_shared_##ROUTE, T, k, ROUTE, shared) \
  TKPY_GATED(gemm_gated_##T##_two_##ROUTE, T, k, ROUTE, two)       \
  TKPY_GATED(gemm_gated_##T##_slopes_##ROUTE, T, mn, ROUTE, slopes)

TKPY_GATED_INPUTS(bf16, tma)
TKPY_GATED_INPUTS(fp16, tma)
TKPY_GATED_INPUTS(bf16, generic)
TKPY_GATED_INPUTS(fp16, generic)
