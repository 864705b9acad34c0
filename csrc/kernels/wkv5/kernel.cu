// wkv5: y_t = r_t (S + diag(u) k_t v_t^T);  S <- diag(w) S + k_t v_t^T,  w = exp(-exp(w_raw))        per sequence and head
// in   r k v [B,T,H,N] bf16 or fp16, any strides of 16 bytes | w u [H,N] f32 | initial [S,H,N,N] f32 | cu_seqlens [S+1] i32
// out  y [B,T,H,N], final [S,H,N,N] f32
// kernels  wkv5_forward_<bf16|fp16>_<32|64|128>, wkv5_states_.. (segments alone), wkv5_join (states at their starts)
// form     chunks of n = 16 tokens, S at their start:  y = (r w^t) S + A v,  S <- w^n S + (k w^(n-1-s))^T v, and for s < t
//          A[t,s] = sum_i r w^(t-1-s) k = (r w^(t mod L)) (k w^(L-1 - s mod L))^T where the highest bit in which t and s
//          differ is L = 1, 2, 4, 8: four masked products. No exponent is negative: nothing is divided by a decay and
//          nothing overflows, whatever w is (derivation: tkpy/ops/wkv5/eager.py). Short chunks cost least: the products with
//          S are the same for every n, those within a chunk grow with it. Chunks end where their segment does: its first
//          one may be a tail, with zeros before its tokens
// data     gl --TMA, boxes of 16 tokens of a head--> slots[4] of r, k, v -> operands and scores in shared memory,
//          two buffers -> products by mma.sync, S^T in registers for as long as the segment lasts -> y, 32 bytes of a row
// powers   of a lane's channels, computed once, in registers; they are the same for every chunk
// workers  N / 16 warps; outputs.cuh says what each does. Warp 0 also fills the slots
// barriers full[4]: 1 arrival + bytes of TMA, waited by all      free[4]: a lane of every warp, waited by warp 0
//          __syncthreads after each chunk: the next one's operands are there, this one's have been read
// grid     (slots, heads): a CTA has a segment of a sequence. One segment a sequence where B H fills the GPU; else `states`
//          and `join` come first and segments run side by side (r, k, v are then read 5/3 times). A tiny B H is cut in time
//          too, down to 16 tokens, instead of in value channels: prepared operands and scores would be made again for each
// precision products bf16 (fp16 data as two bf16), sums, S, powers fp32. S: k w^.. in two parts, 2^-16. y of bf16: S, A and
//          r w^t are rounded once to bf16, as y is; of fp16 they have two parts. Tokens of others are never used
// limits   N <= 128, a multiple of 8; 16-byte addresses and strides; below 2^31 tokens a row
// cost     bytes 8 B T H N + states, flops B T H (4 N^2 + 2 N^2 + ..): 15 % of peak. At B8 T4096 H64 N64 bf16 1.07 GB, 0.32 ms at
//          3.35 TB/s, and 690 instructions of PTX a chunk and warp, 0.39 ms at one a cycle and sub-core; the goal is 0.65 ms
#include "outputs.cuh"
#include "states.cuh"

#define TKPY_WKV5_KERNELS(T, N, RESIDENT)                                                                           \
  extern "C" __global__ void __launch_bounds__(2 * N, RESIDENT)                                                     \
      wkv5_forward_##T##_##N(const __grid_constant__ tkpy::wkv5::Params p) {                                        \
    tkpy::wkv5::Outputs<tk::T, N>::run(p);                                                                          \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(2 * N, N == 32 ? 8 : N == 64 ? 3 : 1)                                \
      wkv5_states_##T##_##N(const __grid_constant__ tkpy::wkv5::Params p) {                                         \
    tkpy::wkv5::States<tk::T, N>::run(p);                                                                           \
  }
TKPY_WKV5_KERNELS(bf16, 32, 8)
TKPY_WKV5_KERNELS(bf16, 64, 4)
TKPY_WKV5_KERNELS(bf16, 128, 1)
TKPY_WKV5_KERNELS(fp16, 32, 6)
TKPY_WKV5_KERNELS(fp16, 64, 3)
TKPY_WKV5_KERNELS(fp16, 128, 1)

extern "C" __global__ void __launch_bounds__(128) wkv5_join(const __grid_constant__ tkpy::wkv5::Params p) {
  tkpy::wkv5::join(p);
}
