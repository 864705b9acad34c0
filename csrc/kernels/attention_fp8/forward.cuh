// attention forward of e4m3: O = softmax(c S) V, q = descale_q q8 and so on, a scale for every 128 rows of a head
//   S_j = q8 k8_j^T, its scores are c_j S_j with c_j = c descale_q descale_k[j]; softmax online as in attention_forward
//   P = 2^(8 + c_j S_j - m), at most 256, as e4m3; its sum, not rounded, has the same 2^8, and the quotient none
//   O = sum_j descale_v[j] P_j v8_j: sums are kept in units of the descale_v of the block that was added last
// in   q [B,Sq,H,D]  k [B,Sk,Hkv,D]  v [B,Sk,Hkv,Dv]  e4m3, any strides that TMA takes; or packed [total,H,D] with
//      cu_seqlens on the device | descales f32, blocks counted from each sequence's start (params.h)
//      sinks, out_scale, out_bias f32, kv_head_map: optional
// out  o [B,Sq,H,Dv] bf16, lse [B,H,Sq] f32 natural log, sink included
// kernels  attention_fp8_<D>[x<Dv>]  grid up to one CTA an SM, persistent, tasks as in attention_forward; block 384
// producer   warp 0    gl q --TMA--> q[2]; gl k, v --TMA--> k[2], v[2] (v[1] from 224 on), blocks downwards
//              q_full  1 arrival + bytes, waited by the consumers     q_free  8 consumer warps
//              keys    full 1 arrival + bytes, free 8 consumer warps    values  full 1 arrival + bytes, free 3 turning warps
// turning    warps 1 .. 3   v --ldmatrix, stmatrix--> turned[2], v^T (turn.cuh)
//              turned  full 3 arrivals, free 8 consumer warps
// consumers  2 warpgroups of 64 rows    S of block j runs with P v of block j + 1; the softmax of j under that P v (from 224 on,
//              where registers are short, one after the other: the other consumer fills the gaps)
//              P v of a block is summed apart, some columns at a time, and added to O by fp32 additions
//              named barriers 1, 2: 128 threads of a consumer, around its way out     3, 4: the turn, as in attention_forward
//            O -> bf16 -> shared tile (at 256 half of the columns at a time) --TMA--> gl o; the last tile of a packed
//            sequence by plain stores
// Tails: TMA reads zeros outside q, k, v and writes nothing outside o; keys beyond the sequence are hidden. Packed, the last
//      block of a sequence runs into the next one: its rows of v^T are set to zero, as 0 * NaN is NaN.
// precision  products exact. Tensor cores cut what they add to a sum of 8-bit products off 13 bits below the largest term
//      (docs/emulator.md, Sums): a sum over 8,192 keys of one sign would lose a tenth. Here they add one block to nothing, no
//      more than 128 products, and blocks are added in fp32; P is rounded to e4m3 (3 bits), its sum not
// limits  sm_90a; D, Dv <= 256 and multiples of 16; lengths below 2^30
// cost  bytes q + k + v + 2 o + 4 rows, flops 2 (D + Dv) pairs seen, at twice the rate of bf16
#pragma once

#include "kernels/attention_forward/output.cuh"
#include "kernels/attention_forward/softmax.cuh"
#include "params.h"
#include "turn.cuh"

namespace tkpy::attention_fp8 {

using attention_forward::Tile;

// The softmax of attention_forward in units of log2, for scales that differ from block to block.
struct Softmax : attention_forward::Softmax<kBlock, true, false> {
  static constexpr float raised = 8.0f;  // P is up to 2^raised: e4m3 then holds weights down to 2^-17

  TK_DEVICE void step(Scores& s, float (&factor)[2], const Params& p, float descale, int key) {
    float c = descale * p.scale_log2;
    if (p.cap_outer > 0.0f || !(p.scale_log2 > 0.0f)) {
      const float inner = descale * p.cap_inner, outer = p.cap_outer;
      if (outer > 0.0f)
        map(s, s, [=](float x) { return outer * fn::tanh(inner * x); });
      else
        mul(s, s, inner);
      c = 1.0f;
    }
    if (key < all_low || key + kBlock - 1 > all_high) hide(s, key);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = -fn::infinity;
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4) highest = fmaxf(highest, fmaxf(s.x[0][e], s.x[0][e + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(best[half], c * fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2)));
      const float base = highest == -fn::infinity ? 0.0f : highest;  // a row that has seen no key yet
      factor[half] = fn::exp2(best[half] - base);
      best[half] = highest;
      float sum = 0.0f;
#pragma unroll
      for (int e = 2 * half; e < Scores::elements; e += 4) {
        s.x[0][e] = fn::exp2(fmaf(s.x[0][e], c, raised - base));
        s.x[0][e + 1] = fn::exp2(fmaf(s.x[0][e + 1], c, raised - base));
        sum += s.x[0][e] + s.x[0][e + 1];
      }
      total[half] = total[half] * factor[half] + sum;
    }
  }

  TK_DEVICE void lower() {
    best[0] -= raised;
    best[1] -= raised;
  }
};

template <int Index>
struct Forward {
  static constexpr Shape shape = kShapes[Index];
  static constexpr int W = Shape::kConsumers, Keys = kBlock, Stages = Shape::kStages, turners = 3;
  static constexpr int VStages = shape.v_stages();
  using Way = attention_forward::WayOut<bf16, shape.dim_v, true, shape.out_columns()>;

  using QTile = st<e4m3, 64, shape.dim>;
  using KTile = st<e4m3, Keys, shape.dim>;
  using VTile = st<e4m3, Keys, shape.dim_v>;
  using Turned = st<e4m3, shape.dim_v, Keys>;
  using OTile = typename Way::OTile;
  using Output = typename Way::Output;
  using Part = rt_fl<16, shape.part_columns()>;
  static constexpr bool apart = shape.apart();
  static constexpr int parts = shape.dim_v / Part::cols;
  static_assert(parts * Part::cols == shape.dim_v, "the parts of O must be all of it");
  using Work = attention_forward::Schedule<W * 64, Keys>;

  struct Barriers {
    channel<Stages> keys, turned;
    channel<VStages> values;
    mbarrier q_full, q_free;
  };
  struct Shared {
    OTile o[W];
    QTile q[W];
    KTile k[Stages];
    VTile v[VStages];
    Turned turned[Stages];
    Barriers barriers;
  };
  static_assert(sizeof(Shared) == shape.shared_bytes(), "the launcher asks for shared_bytes(): it must be the truth");

  template <class Use>
  TK_DEVICE static void each_tile(const Params& p, Use use) {
    const Work work{p};
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
      Tile tile;
      if (work.find(tile, order.task())) use(tile);
    }
  }

  TK_DEVICE static void produce(Shared& shared, const Params& p) {
    Barriers& bars = shared.barriers;
    const bool leader = lane_index() == 0;
    ring<Stages> at;
    ring<VStages> at_v;
    u32 q_phase = 1;
    each_tile(p, [&](const Tile& tile) {
      if (tile.blocks() == 0) return;
      wait(bars.q_free, q_phase);
      q_phase ^= 1;
      if (leader) {
        arrive_expect(bars.q_full, W * QTile::bytes);
        for (int i = 0; i < W; ++i)
          load(shared.q[i], gl<QTile, 4>(p.q), {tile.batch, tile.head, tile.q_begin + tile.row + 64 * i, 0}, bars.q_full);
      }
      for (int block = tile.end - 1; block >= tile.first; --block, at.next(), at_v.next()) {
        const int row = tile.k_begin + block * Keys;
        acquire(bars.keys, at);
        if (leader) {
          arrive_expect(bars.keys.full[at.slot], KTile::bytes);
          load(shared.k[at.slot], gl<KTile, 4>(p.k), {tile.batch, tile.kv_head, row, 0}, bars.keys.full[at.slot]);
        }
        acquire(bars.values, at_v);
        if (leader) {
          arrive_expect(bars.values.full[at_v.slot], VTile::bytes);
          load(shared.v[at_v.slot], gl<VTile, 4>(p.v), {tile.batch, tile.kv_head, row, 0}, bars.values.full[at_v.slot]);
        }
        __syncwarp();
      }
    });
  }

  TK_DEVICE static void turn_values(Shared& shared, const Params& p, int warp) {
    Barriers& bars = shared.barriers;
    ring<Stages> at;
    ring<VStages> at_v;
    each_tile(p, [&](const Tile& tile) {
      for (int block = tile.end - 1; block >= tile.first; --block, at.next(), at_v.next()) {
        await(bars.values, at_v);
        acquire(bars.turned, at);
        const int valid = p.cu_seqlens_q == nullptr ? Keys : tile.seq_k - block * Keys;
        turn(shared.turned[at.slot], shared.v[at_v.slot], warp, turners, valid);
        publish_tile();
        __syncwarp();
        release(bars.values, at_v);
        if (lane_index() == 0) arrive(bars.turned.full[at.slot]);
      }
    });
  }

  TK_DEVICE static void take_turn(int consumer) { sync(1 + W + consumer, 256); }
  TK_DEVICE static void pass_turn(int consumer) { arrive(1 + W + (consumer + 1) % W, 256); }

  struct Positions {
    ring<Stages> k, v;
    u32 q_phase = 0;
  };

  // Those of a head's blocks, in its sequence that begins at row `begin`.
  TK_DEVICE static const float* scales(const float* all, const Params& p, const Tile& tile, int heads, int head, int blocks, int begin) {
    const int first = p.cu_seqlens_q == nullptr ? 0 : begin / kBlock + tile.sequence;
    return all + static_cast<long long>(tile.batch * heads + head) * blocks + first;
  }

  TK_DEVICE static void issue_scores(Shared& shared, int consumer, const Positions& at, typename Softmax::Scores& s) {
    mma_fence();
    mma_ABt(s, shared.q[consumer], shared.k[at.k.slot], false);
    mma_commit();
  }
  TK_DEVICE static void issue_part(Shared& shared, const Positions& at, Part& part, int number, const rt_e4m3<16, Keys>& weights) {
    mma_fence();
    mma_ABt(part, weights, subtile<Part::cols, Keys>(shared.turned[at.v.slot], number * Part::cols, 0), false);
    mma_commit();
  }
  TK_DEVICE static void add_part(Output& o, Part& part, int number) {
    mma_wait(part);
#pragma unroll
    for (int e = 0; e < Part::elements; ++e) o.x[0][number * Part::elements + e] += part.x[0][e];
  }
  // Those from part `number` on.
  TK_DEVICE static void add_parts(Shared& shared, const Positions& at, Output& o, Part& part, int number,
                                  const rt_e4m3<16, Keys>& weights) {
#pragma unroll
    for (; number < parts; ++number) {
      issue_part(shared, at, part, number, weights);
      add_part(o, part, number);
    }
  }
  TK_DEVICE static void free_keys(Shared& shared, Positions& at) {
    release(shared.barriers.keys, at.k);
    at.k.next();
  }
  TK_DEVICE static void free_values(Shared& shared, Positions& at) {
    release(shared.barriers.turned, at.v);
    at.v.next();
  }

  TK_DEVICE static void change_unit(float (&factor)[2], float& unit, float next) {
    const float change = unit / next;
    unit = next;
    factor[0] *= change;
    factor[1] *= change;
  }

  // O += P v (before division), with the softmax's state, of a tile that sees at least one block; gives the unit of O.
  TK_DEVICE static float accumulate(Shared& shared, const Params& p, const Tile& tile, int consumer, Positions& at,
                                    Output& o, Softmax& soft) {
    Barriers& bars = shared.barriers;
    typename Softmax::Scores s;
    rt_e4m3<16, Keys> weights;
    float factor[2];
    const float* of_k = scales(p.descale_k, p, tile, p.kv_heads, tile.kv_head, p.k_blocks, tile.k_begin);
    const float* of_v = scales(p.descale_v, p, tile, p.kv_heads, tile.kv_head, p.k_blocks, tile.k_begin);
    const float of_q = scales(p.descale_q, p, tile, p.heads, tile.head, p.q_blocks, tile.q_begin)[tile.row / kBlock];
    float unit = of_v[tile.end - 1];
    Part part;
    wait(bars.q_full, at.q_phase);
    at.q_phase ^= 1;
    if constexpr (apart) {
      for (int block = tile.end - 1; block >= tile.first; --block) {
        await(bars.keys, at.k);
        take_turn(consumer);
        issue_scores(shared, consumer, at, s);
        pass_turn(consumer);
        mma_wait(s);
        free_keys(shared, at);
        soft.step(s, factor, p, of_q * of_k[block], block * Keys);
        change_unit(factor, unit, of_v[block]);
        Way::scale_rows(o, factor);
        order_of_keys(weights, s);
        await(bars.turned, at.v);
        add_parts(shared, at, o, part, 0, weights);
        free_values(shared, at);
      }
      if (lane_index() == 0) arrive(bars.q_free);
      return unit;
    }
    await(bars.keys, at.k);
    issue_scores(shared, consumer, at, s);
    float descale = of_q * of_k[tile.end - 1];
    mma_wait(s);
    free_keys(shared, at);
    soft.step(s, factor, p, descale, (tile.end - 1) * Keys);
    order_of_keys(weights, s);
    for (int block = tile.end - 2; block >= tile.first; --block) {
      await(bars.keys, at.k);
      take_turn(consumer);
      issue_scores(shared, consumer, at, s);
      await(bars.turned, at.v);
      issue_part(shared, at, part, 0, weights);
      pass_turn(consumer);
      descale = of_q * of_k[block];
      mma_wait<1>(s);
      free_keys(shared, at);
      soft.step(s, factor, p, descale, block * Keys);
      change_unit(factor, unit, of_v[block]);
      add_part(o, part, 0);
      add_parts(shared, at, o, part, 1, weights);
      free_values(shared, at);
      Way::scale_rows(o, factor);
      order_of_keys(weights, s);
    }
    if (lane_index() == 0) arrive(bars.q_free);
    await(bars.turned, at.v);
    add_parts(shared, at, o, part, 0, weights);
    free_values(shared, at);
    return unit;
  }

  TK_DEVICE static void consume(Shared& shared, const Params& p, int consumer) {
    Positions at;
    if (consumer == W - 1) pass_turn(consumer);  // the first turn is consumer 0's
    each_tile(p, [&](const Tile& tile) {
      Softmax soft;
      soft.begin(p, tile, tile.row + 64 * consumer);
      Output o;
      zero(o);
      float unit = 1.0f;
      if (tile.blocks() > 0) unit = accumulate(shared, p, tile, consumer, at, o, soft);
      float factor[2], lse[2];
      soft.lower();
      soft.finish(factor, lse, p, tile.head);
      Way::write_lse(p, tile, tile.row + 64 * consumer + 16 * (warp_index() % 4), lse);
      if (tile.blocks() == 0) return Way::write_empty(p, tile, consumer);
      factor[0] *= unit;
      factor[1] *= unit;
      Way::scale_rows(o, factor);
      Way::move_output(o, p, tile.head);
      Way::write_out(shared.o[consumer], p, tile, consumer, o, p.out, p.out_data);
    });
    if (consumer == 0) take_turn(consumer);  // the last turn comes back
    if (threadIdx.x % 128 == 0) wait_stores();
  }

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
      Barriers& bars = shared.barriers;
      init(bars.keys, 1, 4 * W);
      init(bars.values, 1, turners);
      init(bars.turned, turners, 4 * W);
      init(bars.q_full, 1);
      init(bars.q_free, 4 * W);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup_index() == 0) {
      give_registers<24>();
      if (warp_index() == 0)
        produce(shared, p);
      else
        turn_values(shared, p, warp_index() - 1);
    } else {
      take_registers<240>();  // at 256 O, S and P are 208 of them
      consume(shared, p, warpgroup_index() - 1);
    }
  }
};

}  // namespace tkpy::attention_fp8

#define TKPY_ATTENTION_FP8(NAME, INDEX)                                                              \
  extern "C" __global__ void __launch_bounds__(tkpy::attention_fp8::Shape::kThreads, 1)              \
      attention_fp8_##NAME(const __grid_constant__ tkpy::attention_fp8::Params p) {                  \
    tkpy::attention_fp8::Forward<INDEX>::run(p);                                                     \
  }
