// attention forward: O = softmax(c S) V, S = Q K^T by blocks of keys with an online softmax, no S in memory
//                                                            per (batch entry or sequence, head); see softmax.cuh
// in   q [B,Sq,H,D]  k [B,Sk,Hkv,D]  v [B,Sk,Hkv,Dv]  bf16 or fp16, any strides that TMA takes; or packed [total,H,D] with
//      cu_seqlens on the device | sinks, out_scale, out_bias f32, kv_head_map: optional
// out  o [B,Sq,H,Dv], lse [B,H,Sq] f32 natural log, sink included; with out_scale, out_bias also the output before them
// kernels  attention_forward_<bf16|fp16>_<D>[x<Dv>]_<plain|capped>: capped applies softcap, and scales that are not positive;
//            160, 192 and 224 have capped alone: their products leave time for one multiplication a score
//          attention_forward_<bf16|fp16>_<D>[x<Dv>]_blocks<128|64>_<plain|capped>: keys by lists of blocks
//            (block_lists/lists.h); 192x128 has capped alone, too
// grid up to one CTA an SM (blocks of 64: as many as fit), persistent: tasks by `snake`, sorted longest first (schedule.cuh); block 128 (1 + W)
// producer   warp 0 of warpgroup 0      gl q --TMA--> q[W]; gl k, v --TMA--> k[2], v[2], blocks downwards
//              q_full  1 arrival + bytes, waited by all consumers   q_free  by the producer: 4 W warps after their last
//                      product with q, or, where the output leaves through q's tiles, W stores
//              keys, values  channels: full 1 arrival + bytes (of a ragged block: 1 arrival after its zeroes are
//                      written), free 4 W consumer warps
//            packed, the last block of a sequence runs into the next one: its rows of v are set to zero, as 0 * NaN is NaN
// consumers  W warpgroups of 64 rows    S = q k^T; softmax; O += P v with P in registers
//              S of block j runs with P v of block j + 1; the softmax of block j runs under that P v
//              named barriers 1 .. W: the 128 threads of one consumer, around its way out
//              named barriers W + 1 .. 2 W (D <= 128): the turn. A consumer issues its products in its turn, then
//                      passes it on, so that one's softmax runs under the other's products
//            O -> q's type -> shared tile (stmatrix) --TMA--> gl o (output.cuh); the last tile of a packed sequence by plain stores
// Tails: TMA reads zeros outside q, k, v and writes nothing outside o; keys beyond the sequence are hidden.
// A row that sees no key gives 0 and lse -inf (with a sink: lse = sink).
// precision  products exact, sums fp32; P rounded to q's type, its sum not; one rounding at the end
// Lists: the producer walks a row of them, partial blocks first, leaves of every step the tile of keys and the element mask in
//      steps[2] before its arrival at `keys`, and skips what a causal mask or window hides; consumers mask partial blocks.
// limits  sm_90a; D, Dv <= 256 and multiples of 8; lengths below 2^30; lists: not packed
// cost  bytes 2 (q + k + v + o) + 4 rows when keys of heads_at_once heads stay in L2, flops 2 (D + Dv) pairs seen
#pragma once

#include "output.cuh"
#include "softmax.cuh"

namespace tkpy::attention_forward {

template <class T, int Index, bool Capped, bool Listed = false>
struct Forward {
  static constexpr Shape shape = Listed ? kBlockShapes[Index] : kShapes[Index];
  static constexpr int W = shape.consumers, Keys = shape.keys, Rows = shape.rows(), Stages = Shape::kStages;
  static constexpr bool turns = shape.dim <= 128 && W > 1, own_out = shape.own_out();
  static constexpr bool pools = W > 1 || shape.ctas > 1;  // one consumer alone has all the registers it wants
  static constexpr int producer_registers = shape.producer_registers(), consumer_registers = shape.consumer_registers();

  using QTile = st<T, 64, shape.dim>;
  using KTile = st<T, Keys, shape.dim>;
  using VTile = st<T, Keys, shape.dim_v>;
  using Way = WayOut<T, shape.dim_v, !Listed>;
  using OTile = typename Way::OTile;
  using Parameters = typename choose<Listed, BlockParams, Params>::type;
  using Work = Schedule<Rows, Keys, Parameters>;
  using Soft = Softmax<Keys, Capped, Listed>;
  using Block = Seen<Keys, Listed>;
  using Output = typename Way::Output;

  struct Barriers {
    channel<Stages> keys, values;
    mbarrier q_full, q_free, ragged;
    block_lists::Step steps[Stages];
  };
  struct Tiles {
    QTile q[W];
    KTile k[Stages];
    VTile v[Stages];
    TK_DEVICE OTile& out(int consumer) { return reinterpret_cast<OTile&>(q[consumer]); }
  };
  struct TilesAndOut : Tiles {
    OTile o[W];
    TK_DEVICE OTile& out(int consumer) { return o[consumer]; }
  };
  struct alignas(1024) Shared : choose<shape.own_out(), TilesAndOut, Tiles>::type {
    Barriers barriers;
  };
  static_assert(sizeof(Shared) == shape.shared_bytes(), "the launcher asks for shared_bytes(): it must be the truth");
  static_assert(sizeof(Shared) <= 232448, "a CTA has at most 227 KiB of shared memory");

  // ---- Producer: one warp, of which lane 0 issues ------------------------------------------------------------------
  // A block of v, of which the rows from `valid` on belong to another sequence.
  TK_DEVICE static void fetch_ragged(Shared& shared, const Params& p, VTile& v, const Tile& tile, int block, u32& phase,
                                     mbarrier& full) {
    mbarrier& ragged = shared.barriers.ragged;
    if (lane_index() == 0) {
      arrive_expect(ragged, VTile::bytes);
      load(v, gl<VTile, 4>(p.v), {tile.batch, tile.kv_head, tile.k_begin + block * Keys, 0}, ragged);
    }
    __syncwarp();
    wait(ragged, phase);
    phase ^= 1;
    constexpr int width = 8;  // elements of 16 bytes
    const int valid = tile.seq_k - block * Keys;
#pragma unroll 1
    for (int i = lane_index(); i < (Keys - valid) * (VTile::cols / width); i += 32) {
      const int row = valid + i / (VTile::cols / width), col = i % (VTile::cols / width) * width;
      *reinterpret_cast<uint4*>(&v.at(row, col)) = make_uint4(0, 0, 0, 0);
    }
    publish_tile();
    __syncwarp();
    if (lane_index() == 0) arrive(full);
  }

  // Keys and values of one step.
  TK_DEVICE static void fetch(Shared& shared, const Parameters& p, const Tile& tile, int block, ring<Stages>& at_k,
                              ring<Stages>& at_v, u32& ragged_phase, const block_lists::Step& step) {
    Barriers& bars = shared.barriers;
    const bool leader = lane_index() == 0;
    acquire(bars.keys, at_k);
    const int row = tile.k_begin + block * Keys;
    if (leader) {
      if constexpr (Listed) bars.steps[at_k.slot] = step;
      arrive_expect(bars.keys.full[at_k.slot], KTile::bytes);
      load(shared.k[at_k.slot], gl<KTile, 4>(p.k), {tile.batch, tile.kv_head, row, 0}, bars.keys.full[at_k.slot]);
    }
    acquire(bars.values, at_v);
    mbarrier& full = bars.values.full[at_v.slot];
    if (!Listed && p.cu_seqlens_q != nullptr && (block + 1) * Keys > tile.seq_k) {
      fetch_ragged(shared, p, shared.v[at_v.slot], tile, block, ragged_phase, full);
    } else if (leader) {
      arrive_expect(full, VTile::bytes);
      load(shared.v[at_v.slot], gl<VTile, 4>(p.v), {tile.batch, tile.kv_head, row, 0}, full);
    }
    __syncwarp();
    at_k.next();
    at_v.next();
  }

  TK_DEVICE static void produce(Shared& shared, const Parameters& p) {
    Barriers& bars = shared.barriers;
    const Work work{p};
    const bool leader = lane_index() == 0;
    ring<Stages> at_k, at_v;
    u32 q_phase = 1, ragged_phase = 0;
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
      Tile tile;
      if (!work.find(tile, order.task()) || tile.blocks() == 0) continue;
      wait(bars.q_free, q_phase);
      q_phase ^= 1;
      if (leader) {
        arrive_expect(bars.q_full, W * QTile::bytes);
        for (int i = 0; i < W; ++i)
          load(shared.q[i], gl<QTile, 4>(p.q), {tile.batch, tile.head, tile.q_begin + tile.row + 64 * i, 0},
               bars.q_full);
      }
      if constexpr (Listed) {
        work.find_blocks(tile);
        work.row(tile).each(tile.first, tile.end, [&](const block_lists::Step& step) {
          fetch(shared, p, tile, step.tile, at_k, at_v, ragged_phase, step);
        });
      } else {
        for (int block = tile.end - 1; block >= tile.first; --block)
          fetch(shared, p, tile, block, at_k, at_v, ragged_phase, {});
      }
    }
  }

  // ---- Consumers -----------------------------------------------------------------------------------------------------
  TK_DEVICE static void take_turn(int consumer) {
    if constexpr (turns) sync(1 + W + consumer, 256);
  }
  TK_DEVICE static void pass_turn(int consumer) {
    if constexpr (turns) arrive(1 + W + (consumer + 1) % W, 256);
  }

  struct Positions {
    ring<Stages> k, v;
    u32 q_phase = 0;
  };

  // The keys in slot `slot`; without lists they are `block`.
  TK_DEVICE static Block keys_in(const Shared& shared, const Parameters& p, const Tile& tile, int consumer, int slot, int block) {
    if constexpr (Listed) {
      block_lists::Step step = {};
      if (lane_index() == 0) step = shared.barriers.steps[slot];  // by the lane that will release the slot
      step = {__shfl_sync(0xffffffffu, step.tile, 0), __shfl_sync(0xffffffffu, step.slot, 0)};
      Block seen = {step.tile * Keys, step.slot >= 0, {}};
      if (!seen.partial) return seen;
      const int size = p.lists.block, row = (tile.row + 64 * consumer) % size + 16 * (warp_index() % 4) + lane_index() / 4;
      const u64 at = (static_cast<u64>(step.slot) * size + row) * (size / 8) + seen.key % size / 8;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2* from = reinterpret_cast<const uint2*>(p.lists.masks + at + half * size);  // 8 rows further
#pragma unroll
        for (int i = 0; i < Keys / 64; ++i) {
          const uint2 words = from[i];
          seen.bits[half][2 * i] = words.x >> 2 * (lane_index() % 4);
          seen.bits[half][2 * i + 1] = words.y >> 2 * (lane_index() % 4);
        }
      }
      return seen;
    } else {
      return {block * Keys};
    }
  }

  // O += P v (before division), with the softmax's state, of a tile that sees at least one block.
  TK_DEVICE static void accumulate(Shared& shared, const Parameters& p, const Tile& tile, int consumer, Positions& at,
                                   Output& o, Soft& soft) {
    Barriers& bars = shared.barriers;
    typename Soft::Scores s;
    rt<T, 16, Keys> weights;
    float factor[2];
    wait(bars.q_full, at.q_phase);
    at.q_phase ^= 1;
    await(bars.keys, at.k);
    mma_fence();
    mma_ABt(s, shared.q[consumer], shared.k[at.k.slot], false);
    mma_commit();
    Block seen = keys_in(shared, p, tile, consumer, at.k.slot, tile.end - 1);
    mma_wait(s);
    release(bars.keys, at.k);
    at.k.next();
    soft.step(s, factor, p, seen);
    copy(weights, s);
    for (int block = tile.end - 2; block >= tile.first; --block) {
      await(bars.keys, at.k);
      take_turn(consumer);
      mma_fence();
      mma_ABt(s, shared.q[consumer], shared.k[at.k.slot], false);
      mma_commit();
      await(bars.values, at.v);
      mma_fence();
      mma_AB(o, weights, shared.v[at.v.slot]);
      mma_commit();
      pass_turn(consumer);
      seen = keys_in(shared, p, tile, consumer, at.k.slot, block);
      mma_wait<1>(s);
      release(bars.keys, at.k);
      at.k.next();
      soft.step(s, factor, p, seen);
      mma_wait(o);
      release(bars.values, at.v);
      at.v.next();
      Way::scale_rows(o, factor);
      copy(weights, s);
    }
    if constexpr (own_out)
      if (lane_index() == 0) arrive(bars.q_free);
    await(bars.values, at.v);
    mma_fence();
    mma_AB(o, weights, shared.v[at.v.slot]);
    mma_commit();
    mma_wait(o);
    release(bars.values, at.v);
    at.v.next();
  }

  TK_DEVICE static void consume(Shared& shared, const Parameters& p, int consumer) {
    const Work work{p};
    const bool leader = threadIdx.x % 128 == 0;
    Positions at;
    if (consumer == W - 1) pass_turn(consumer);  // the first turn is consumer 0's
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
      Tile tile;
      if (!work.find(tile, order.task())) continue;
      Soft soft;
      soft.begin(p, tile, tile.row + 64 * consumer);
      Output o;
      zero(o);
      if (tile.blocks() > 0) accumulate(shared, p, tile, consumer, at, o, soft);
      float factor[2], lse[2];
      soft.finish(factor, lse, p, tile.head);
      Way::write_lse(p, tile, tile.row + 64 * consumer + 16 * (warp_index() % 4), lse);
      if (tile.blocks() == 0) {
        Way::write_empty(p, tile, consumer);
        continue;
      }
      Way::scale_rows(o, factor);
      if (p.plain_data) {
        Way::write_out(shared.out(consumer), p, tile, consumer, o, p.plain, p.plain_data);
        Way::move_output(o, p, tile.head);
      }
      Way::write_out(shared.out(consumer), p, tile, consumer, o, p.out, p.out_data);
      if constexpr (!own_out) {  // q's tile is the producer's again
        sync(1 + consumer, 128);
        if (leader) {
          wait_stores_read();
          arrive(shared.barriers.q_free);
        }
      }
    }
    if (consumer == 0) take_turn(consumer);  // the last turn comes back
    if (leader) wait_stores();
  }

  TK_DEVICE static void run(const Parameters& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
      Barriers& bars = shared.barriers;
      init(bars.keys, 1, 4 * W);
      init(bars.values, 1, 4 * W);
      init(bars.q_full, 1);
      init(bars.q_free, own_out ? 4 * W : W);
      init(bars.ragged, 1);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup_index() == 0) {
      if constexpr (pools) give_registers<producer_registers>();
      if (warp_index() == 0) produce(shared, p);
    } else {
      if constexpr (pools) take_registers<consumer_registers>();
      consume(shared, p, warpgroup_index() - 1);
    }
  }
};

}  // namespace tkpy::attention_forward

#define TKPY_ATTENTION(NAME, T, INDEX, CAPPED)                                                             \
  extern "C" __global__ void __launch_bounds__(tkpy::attention_forward::kShapes[INDEX].threads(), 1)       \
      attention_forward_##T##_##NAME(const __grid_constant__ tkpy::attention_forward::Params p) {          \
    tkpy::attention_forward::Forward<tk::T, INDEX, CAPPED>::run(p);                                        \
  }
#define TKPY_ATTENTION_CAPPED_KERNELS(NAME, INDEX)      \
  TKPY_ATTENTION(NAME##_capped, bf16, INDEX, true)      \
  TKPY_ATTENTION(NAME##_capped, fp16, INDEX, true)
#define TKPY_ATTENTION_KERNELS(NAME, INDEX)             \
  TKPY_ATTENTION(NAME##_plain, bf16, INDEX, false)      \
  TKPY_ATTENTION(NAME##_plain, fp16, INDEX, false)      \
  TKPY_ATTENTION_CAPPED_KERNELS(NAME, INDEX)

#define TKPY_ATTENTION_BLOCKS(NAME, T, INDEX, CAPPED)                                                         \
  extern "C" __global__ void __launch_bounds__(tkpy::attention_forward::kBlockShapes[INDEX].threads(),        \
                                               tkpy::attention_forward::kBlockShapes[INDEX].ctas)             \
      attention_forward_##T##_##NAME(const __grid_constant__ tkpy::attention_forward::BlockParams p) {        \
    tkpy::attention_forward::Forward<tk::T, INDEX, CAPPED, true>::run(p);                                     \
  }
#define TKPY_ATTENTION_CAPPED_BLOCK_KERNELS(NAME, INDEX)     \
  TKPY_ATTENTION_BLOCKS(NAME##_capped, bf16, INDEX, true)    \
  TKPY_ATTENTION_BLOCKS(NAME##_capped, fp16, INDEX, true)
#define TKPY_ATTENTION_BLOCK_KERNELS(NAME, INDEX)            \
  TKPY_ATTENTION_BLOCKS(NAME##_plain, bf16, INDEX, false)    \
  TKPY_ATTENTION_BLOCKS(NAME##_plain, fp16, INDEX, false)    \
  TKPY_ATTENTION_CAPPED_BLOCK_KERNELS(NAME, INDEX)
