// The gradients of wkv5. With G_t = dL/dS_t, G_{t-1} = diag(w) G_t + r_t gy_t^T from dL/d(final state) on:
//   gr_t = S_{t-1} gy_t + u k_t (v_t . gy_t)      gk_t = G_t v_t + u r_t (v_t . gy_t)      gv_t = G_t^T k_t + (r u k) gy_t
//   gu = sum r k (v . gy)      dL / d ln w = sum over pairs s < t of (t-1-s) w^(t-1-s) k_s r_t (v_s . gy_t), and of states
// in   r k v gy [B,T,H,N], w u, initial, g_final (dL/d(final state)), cu_seqlens as kernel.cu has them
// out  gr gk gv [B,T,H,N], g_initial [S,H,N,N], shares of gu and dL/d ln w [slots,H,N] that torch adds, in their order
// kernels  wkv5_gr_<type>_<N>   first to last token: gr, gu and a share of dL/d ln w                             keys.cuh
//          wkv5_gk_..           last to first: gk and the other share                                             keys.cuh
//          wkv5_gv_..           last to first: the forward with r and k, v and gy exchanged: gv, g_initial      outputs.cuh
//          before gr, of several segments, wkv5_states and wkv5_join of S and dS / d ln w; before gk of G       states.cuh
//          No state is stored for another kernel but at the segments' starts: each carries its own
// workers, barriers, grid  as in kernel.cu; warps of gr and gk share nothing but the slots
// registers  wkv5_gr_fp16_128 keeps 20 bytes a thread in local memory; nothing else does
// precision  in keys.cuh; gv is rounded as y is. The same call gives the same bits: no atomics
// cost     bytes: gr and gk 5 tensors of B T H N, gv 4, states 2 + 2 more where there are segments: at B8 T4096 H64 N64
//          3.76 GB (each of seven tensors once would be 1.88 GB); flops B T H (4 + 2 parts ..) N^2: a third of the time
#include "keys.cuh"

#define TKPY_WKV5_BACKWARD(T, N, GR, GK, GV)                                                                        \
  extern "C" __global__ void __launch_bounds__(2 * N, GR)                                                           \
      wkv5_gr_##T##_##N(const __grid_constant__ tkpy::wkv5::Params p) {                                             \
    tkpy::wkv5::Keys<tk::T, N, false>::run(p);                                                                      \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(2 * N, GK)                                                           \
      wkv5_gk_##T##_##N(const __grid_constant__ tkpy::wkv5::Params p) {                                             \
    tkpy::wkv5::Keys<tk::T, N, true>::run(p);                                                                       \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(2 * N, GV)                                                           \
      wkv5_gv_##T##_##N(const __grid_constant__ tkpy::wkv5::Params p) {                                             \
    tkpy::wkv5::Sweep<tk::T, N, true>::run(p);                                                                      \
  }
TKPY_WKV5_BACKWARD(bf16, 32, 4, 6, 8)
TKPY_WKV5_BACKWARD(bf16, 64, 2, 3, 3)
TKPY_WKV5_BACKWARD(bf16, 128, 1, 1, 1)
TKPY_WKV5_BACKWARD(fp16, 32, 4, 4, 6)
TKPY_WKV5_BACKWARD(fp16, 64, 2, 2, 2)
TKPY_WKV5_BACKWARD(fp16, 128, 1, 1, 1)
