// The kernels of the fused blockdiag_mlp; mlp.cuh describes their data flow and barriers.
// precision  products exact, sums, activation and gate fp32, h and y rounded once
// limits  sm_90a; blocks of multiples of 8, at most 256 inputs and outputs
// cost  bytes x twice (once from HBM), y once, weights once for 256 rows; flops 2 rows (2 i c + o i) a block
#include "mlp.cuh"

#define TKPY_BLOCKDIAG_MLP(T, W)                                                             \
  extern "C" __global__ void __launch_bounds__(tkpy::blockdiag_mlp::kThreads, 1)             \
      blockdiag_mlp_##T##_##W(const __grid_constant__ tkpy::blockdiag_mlp::Params p) {       \
    tkpy::blockdiag_mlp::Mlp<tk::T, W>::run(p);                                              \
  }
#define TKPY_BLOCKDIAG_MLP_WIDTHS(T) \
  TKPY_BLOCKDIAG_MLP(T, 128)         \
  TKPY_BLOCKDIAG_MLP(T, 192)         \
  TKPY_BLOCKDIAG_MLP(T, 256)

TKPY_BLOCKDIAG_MLP_WIDTHS(bf16)
TKPY_BLOCKDIAG_MLP_WIDTHS(fp16)
