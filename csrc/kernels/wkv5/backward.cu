// The gradients of wkv5. With G_t = dL/dS_t, G_{t-1} = diag(w) G_t + r_t gy_t^T from dL/d(final state) on:
//   gr_t = S_{t-1} gy_t + u k_t (v_t . gy_t)      gk_t = G_t v_t + u r_t (v_t . gy_t)      gv_t = G_t^T k_t + (r u k) gy_t
//   gu = sum r k (v . gy)      dL / d ln w = sum over pairs s < t of (t-1-s) w^(t-1-s) k_s r_t (v_s . gy_t), and of states
// in   r k v gy [B,T,H,N], w u, initial, g_final (dL/d(final state)), cu_seqlens as kernel.cu has them
// out  gr gk gv [B,T,H,N], g_initial [S,H,N,N], shares of gu and dL/d ln w [slots,H,N] that torch adds, in their order
// kernels  wkv5_backward_<type>_<N>, two sweeps of one body (keys.cuh): first to last with S: gr, gu, a share of dL/d ln w;
//          last to first with G: gk, gv, the other share, g_initial. Of several segments wkv5_states and wkv5_join come
//          before each: of S and dS / d ln w, of G (states.cuh)
//          No state is stored for another kernel but at the segments' starts: each sweep carries its own. To join the two,
//          S must be kept on its way: N / 8 tensors written and read, of every 16 tokens. Kept of every 256 and made again
//          in between, S would cost 1 tensor at N 64 and a sweep over k and v: 10 tensors instead of 11
// workers, barriers, grid  as in kernel.cu; on the way back warps also meet twice a chunk, about what they pass for gv
// precision  in keys.cuh; gv is rounded as y is. The same call gives the same bits: no atomics
// cost     bytes: 4 tensors of B T H N in, 1 out; 4 in, 2 out: 11, where each of seven once would be 7; states 2 + 2 more
//          where there are segments. At B8 T4096 H64 N64 bf16 a tensor is 268 MB: 2.95 GB, 0.88 ms at 3.35 TB/s; with the
//          forward's four 1.20 ms, where the goal is 2.2 ms for both. Instructions bind: of PTX 2800 a chunk and warp in the
//          two sweeps, 1.6 ms at one a cycle and sub-core and 1.755 GHz, 2.0 ms with the forward's. Tensor cores: a third
#include "keys.cuh"

#define TKPY_WKV5_BACKWARD(T, N, RESIDENT)                                                                          \
  extern "C" __global__ void __launch_bounds__(2 * N, RESIDENT)                                                     \
      wkv5_backward_##T##_##N(const __grid_constant__ tkpy::wkv5::Params p) {                                       \
    tkpy::wkv5::Keys<tk::T, N>::run(p);                                                                             \
  }
TKPY_WKV5_BACKWARD(bf16, 32, 4)
TKPY_WKV5_BACKWARD(bf16, 64, 2)
TKPY_WKV5_BACKWARD(bf16, 128, 1)
TKPY_WKV5_BACKWARD(fp16, 32, 4)
TKPY_WKV5_BACKWARD(fp16, 64, 2)
TKPY_WKV5_BACKWARD(fp16, 128, 1)
