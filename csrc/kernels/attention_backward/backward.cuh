// attention backward: the main kernel; rows.cu runs before it, dq.cuh after it
//   P = 2^(c q k^T - log2 e lse)        dV = P^T dz
//   dS = P (dz V^T - delta)             dK = scale dS^T q       dQ = scale dS K        (capped: dS times 1 - tanh^2)
// for one tile of keys of a key head (128, D > 128: 64): all query heads that use it, all query tiles that see it, so that dK and dV are
// summed in registers; dQ is summed in memory, in fp32.
// in   q [B,Sq,H,D]  k [B,Sk,Hkv,D]  v [B,Sk,Hkv,Dv]  dz [B,Sq,H,Dv]  bf16 or fp16; or packed | stats (params.h)
// out  dk, dv like k, v | dq_sum: dQ / scale as fp32 fragments
// kernels  attention_backward_<bf16|fp16>_<D>_<plain|capped>, as in the forward; and for lists of blocks
//            .._<32|64|96|128>_blocks<64|128>_.., .._<160|192x128|192|224|256>_blocks_..
// grid up to one CTA an SM, persistent: tasks by `snake` (schedule.cuh); block 384
// producer   warp 0 (producer.cuh)    gl k, v --TMA--> k, v    gl q, dz --TMA--> q[2], dz[2]    gl stats --bulk--> stats[2]
//              keys    full 1 arrival + bytes, waited by the consumers      free 2: who has stored dk, dv out of the tiles
//              steps   channel: full 1 arrival + bytes, free 8 consumer warps
//            packed, a sequence's last tile runs into the next sequence: those rows are set to zero, as 0 * NaN is NaN;
//            the tiles go through the barrier `ragged` first, then full is 1 arrival
// consumers  2 warpgroups, tiles of S and dP transposed (keys x queries; scores.cuh)
//   (consumer.cuh; parts.cuh: the way out of dQ's part; sums.cuh: of dK, dV)
//   D <= 128   64 keys each
//              S^T = k q^T   dP^T = v dz^T   dV += P^T dz under the work on dP   dS^T -> shared ds[2] -> dQ part = dS k
//              dK += dS^T q under the way out of dQ's part: 64 rows of 128 (D <= 64), or half the columns (D = 96, 128)
//              -> shared dq[w] --bulk add--> gl dq_sum
//   D > 128    32 of 64 queries each: S^T and dP^T, then P^T, dS^T -> shared weights[2], ds[2]; of half the columns each:
//              dQ part = dS k, dV += P^T dz, dK += dS^T q; dQ's part from registers --red--> gl dq_sum
//              (D = 160: 96 and 64 columns, 224: 128 and 96; D = 192 has kernels for values of up to 128: 64 of dV each)
//              named barriers 1, 2: the 128 threads of one consumer, around dq[w] or a turn      3: both, once the tiles
//              that they exchange are written (two of each: who writes one again has met the other after its products
//              with it), and around the way out of dk, dv
//              which go through the tiles of k and v --TMA--> gl; the last tile of a packed sequence by plain stores
//   in turn    (lists of blocks of 64, D <= 128) 64 keys, steps of 64 queries, of which consumers take every other one: all
//              products of a step; dQ's part, both halves -> shared dq[w]; at the end of a tile each hands the other one sum
//              through dq, so that one has dK and the other dV. steps: free after both, who leaves a step has seen it too
// Lists: the producer walks, for every head, the row of query blocks of its keys (partial ones first), skips what a causal
//      mask or window hides, and leaves in `listed` the query tile, the element mask's number and the turn; the mask's rows
//      come with the rows' numbers (D > 128: are read in global memory)
// order of dq  any; or, with `turns`, from the last keys to the first: then every bit is the same every time
// precision  products exact, sums fp32; P and dS rounded to q's type as operands      limits  sm_90a; D, Dv <= 256
// cost  flops 2 (3 D + 2 Dv) pairs; bytes 2 (q + dz) a tile of keys, mostly from L2, 8 D a query row and tile of keys in L2
#pragma once

#include "consumer.cuh"
#include "dq.cuh"
#include "producer.cuh"

namespace tkpy::attention_backward {

template <class T, int Index, bool Capped, bool Listed = false>
struct Backward {
  using Kernel = Layout<T, Index, Capped, Listed>;

  TK_DEVICE static void run(const typename Kernel::Parameters& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    typename Kernel::Shared& shared = *reinterpret_cast<typename Kernel::Shared*>(memory);
    if (threadIdx.x == 0) {
      typename Kernel::Barriers& bars = shared.barriers;
      init(bars.keys_full, 1);
      init(bars.keys_free, 2);
      init(bars.ragged, 1);
      init(bars.steps, 1, 8);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup_index() == 0) {
      give_registers<24>();
      if (warp_index() == 0) Producer<Kernel>::run(shared, p);
    } else {
      take_registers<240>();
      const int number = warpgroup_index() - 1;
      if (Kernel::first == Kernel::second || number == 0)
        Consumer<Half<Kernel, Kernel::first>>(shared, p, number).run();
      else
        Consumer<Half<Kernel, Kernel::second>>(shared, p, number).run();
    }
  }
};

}  // namespace tkpy::attention_backward

#define TKPY_ATTENTION_BACKWARD(NAME, T, INDEX, CAPPED)                                                \
  extern "C" __global__ void __launch_bounds__(tkpy::attention_backward::Shape::kThreads, 1)           \
      attention_backward_##T##_##NAME(const __grid_constant__ tkpy::attention_backward::Params p) {    \
    tkpy::attention_backward::Backward<tk::T, INDEX, CAPPED>::run(p);                                  \
  }
#define TKPY_ATTENTION_DQ(NAME, T, INDEX, LISTED)                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                    \
      attention_backward_##T##_##NAME(const __grid_constant__ tkpy::attention_backward::Params p) {    \
    tkpy::attention_backward::RoundDq<tk::T, INDEX, LISTED>::run(p);                                   \
  }
#define TKPY_ATTENTION_BACKWARD_BLOCKS(NAME, T, INDEX, CAPPED)                                              \
  extern "C" __global__ void __launch_bounds__(tkpy::attention_backward::Shape::kThreads, 1)                \
      attention_backward_##T##_##NAME(const __grid_constant__ tkpy::attention_backward::BlockParams p) {    \
    tkpy::attention_backward::Backward<tk::T, INDEX, CAPPED, true>::run(p);                                 \
  }
#define TKPY_ATTENTION_BACKWARD_CAPPED_KERNELS(NAME, INDEX)      \
  TKPY_ATTENTION_BACKWARD(NAME##_capped, bf16, INDEX, true)      \
  TKPY_ATTENTION_BACKWARD(NAME##_capped, fp16, INDEX, true)      \
  TKPY_ATTENTION_DQ(NAME##_dq, bf16, INDEX, false)               \
  TKPY_ATTENTION_DQ(NAME##_dq, fp16, INDEX, false)
#define TKPY_ATTENTION_BACKWARD_KERNELS(NAME, INDEX)             \
  TKPY_ATTENTION_BACKWARD(NAME##_plain, bf16, INDEX, false)      \
  TKPY_ATTENTION_BACKWARD(NAME##_plain, fp16, INDEX, false)      \
  TKPY_ATTENTION_BACKWARD_CAPPED_KERNELS(NAME, INDEX)
#define TKPY_ATTENTION_BACKWARD_CAPPED_BLOCK_KERNELS(NAME, INDEX)     \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_capped, bf16, INDEX, true)    \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_capped, fp16, INDEX, true)    \
  TKPY_ATTENTION_DQ(NAME##_dq, bf16, INDEX, true)                     \
  TKPY_ATTENTION_DQ(NAME##_dq, fp16, INDEX, true)
#define TKPY_ATTENTION_BACKWARD_BLOCK_KERNELS(NAME, INDEX)            \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_plain, bf16, INDEX, false)    \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_plain, fp16, INDEX, false)    \
  TKPY_ATTENTION_BACKWARD_CAPPED_BLOCK_KERNELS(NAME, INDEX)
