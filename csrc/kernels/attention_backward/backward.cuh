// attention backward: the main kernel; rows.cu runs before it, dq.cuh after it
//   P = 2^(c q k^T - log2 e lse)        dV = P^T dz
//   dS = P (dz V^T - delta)             dK = scale dS^T q       dQ = scale dS K        (capped: dS times 1 - tanh^2)
// for one tile of keys of a key head (128, D > 128: 64): all query heads that use it, all query tiles that see it, so that dK and dV are
// summed in registers; dQ is summed in memory, in fp32.
// in   q [B,Sq,H,D]  k [B,Sk,Hkv,D]  v [B,Sk,Hkv,Dv]  dz [B,Sq,H,Dv]  bf16 or fp16; or packed | stats (params.h)
// out  dk, dv like k, v | dq_sum: dQ / scale as fp32 fragments
// kernels  attention_backward_<bf16|fp16>_<D>_<plain|capped>, as in the forward; and for lists of blocks
//            .._<64|128>_blocks<64|128>_.., .._256_blocks_..
// grid up to one CTA an SM, persistent: tasks by `snake` (schedule.cuh); block 384
// producer   warp 0 (producer.cuh)    gl k, v --TMA--> k, v    gl q, dz --TMA--> q[2], dz[2]    gl stats --bulk--> stats[2]
//              keys    full 1 arrival + bytes, waited by the consumers      free 2: who has stored dk, dv out of the tiles
//              steps   channel: full 1 arrival + bytes, free 8 consumer warps
//            packed, a sequence's last tile runs into the next sequence: those rows are set to zero, as 0 * NaN is NaN;
//            the tiles go through the barrier `ragged` first, then full is 1 arrival
// consumers  2 warpgroups, tiles of S and dP transposed (keys x queries; scores.cuh)
//   D <= 128   64 keys each
//              S^T = k q^T   dP^T = v dz^T   dV += P^T dz under the work on dP   dS^T -> shared ds[2] -> dQ part = dS k
//              dK += dS^T q under the way out of dQ's part: 64 rows of 128 (D = 64), or 64 columns of 128 (D = 128)
//              -> shared dq[w] --bulk add--> gl dq_sum
//   D > 128    32 of 64 queries each: S^T and dP^T, then P^T, dS^T -> shared weights[2], ds[2]; of half the columns each:
//              dQ part = dS k, dV += P^T dz, dK += dS^T q; dQ's part from registers --red--> gl dq_sum
//              named barriers 1, 2: the 128 threads of one consumer, around dq[w] or a turn      3: both, once the tiles
//              that they exchange are written (two of each: who writes one again has met the other after its products
//              with it), and around the way out of dk, dv
//              which go through the tiles of k and v --TMA--> gl; the last tile of a packed sequence by plain stores
//   in turn    (lists of blocks of 64, D <= 128) 64 keys, steps of 64 queries, of which consumers take every other one: all
//              products of a step; dQ's part, both halves -> shared dq[w]; at the end of a tile each hands the other one sum
//              through dq, so that one has dK and the other dV. steps: free after both, who leaves a step has seen it too
// Lists: the producer walks, for every head, the row of query blocks of its keys (partial ones first), skips what a causal
//      mask or window hides, and leaves in `listed` the query tile, the element mask's number and the turn; the mask's rows
//      come with the rows' numbers (D = 256: are read in global memory)
// order of dq  any; or, with `turns`, from the last keys to the first: then every bit is the same every time
// precision  products exact, sums fp32; P and dS rounded to q's type as operands      limits  sm_90a; D, Dv <= 256
// cost  flops 2 (3 D + 2 Dv) pairs; bytes 2 (q + dz) a tile of keys, mostly from L2, 8 D a query row and tile of keys in L2
#pragma once

#include "dq.cuh"
#include "producer.cuh"
#include "scores.cuh"

namespace tkpy::attention_backward {

template <class T, int Index, bool Capped, bool Listed = false>
struct Backward {
  static constexpr Shape shape = Listed ? kBlockShapes[Index] : kShapes[Index];
  static constexpr int Rows = shape.rows, Keys = shape.keys, Stages = shape.stages(), both = 3;
  static constexpr bool wide = shape.wide(), in_turn = shape.in_turn();
  static constexpr int part_size = shape.part();
  static constexpr int Columns = wide ? shape.dim / 2 : shape.dim;  // of a consumer's dK and dV

  using KTile = st<T, Keys, shape.dim, 2 * shape.panel()>;
  using QTile = st<T, Rows, shape.dim, 2 * shape.panel()>;
  using Stats = sv<float, 2 * Rows>;
  using Parameters = typename choose<Listed, BlockParams, Params>::type;
  using Work = Schedule<Rows, Keys, Parameters>;
  using Pairs = Scores<T, wide ? Rows / 2 : Rows, Capped>;
  using Sum = rt_fl<16, Columns>;
  using Part = rt_fl<16, in_turn ? 64 : part_size / 64>;

  struct Barriers {
    mbarrier keys_full, keys_free, ragged;
    channel<Stages> steps;
  };
  struct ByKeys {
    st<T, Keys, Rows> ds[2];
    float dq[2][in_turn ? 2 * part_size : part_size];
  };
  struct ByColumns {
    st<T, Keys, Rows> ds[2], weights[2];
  };
  struct ListedStep {
    block_lists::Step step;
    u32 turn;
  };
  struct Lists {
    ListedStep steps[Stages];
    int owed[2];
  };
  struct NoLists {};
  static constexpr bool staged = shape.mask > 0;  // element masks are in shared memory
  struct alignas(16) MaskTiles {
    unsigned char rows[Stages][Rows * shape.mask + !staged];
  };
  using Masks = typename choose<staged, MaskTiles, NoLists>::type;
  struct Shared : choose<wide, ByColumns, ByKeys>::type {
    KTile k, v;
    QTile q[Stages], dz[Stages];
    Stats stats[Stages];
    Masks masks;
    typename choose<Listed, Lists, NoLists>::type listed;
    Barriers barriers;
  };
  static_assert(sizeof(Shared) == shape.shared_bytes(), "the launcher asks for shared_bytes(): it must be the truth");
  static_assert(shape.shared_bytes() <= 232448, "a CTA has at most 227 KiB of shared memory");

  // ---- Consumers -----------------------------------------------------------------------------------------------------
  struct Consumer {
    Shared& shared;
    const Parameters& p;
    const int number;  // 0 or 1
    ring<Stages> at;
    u32 keys_phase = 0;
    int own_owed = -1;
    Sum dk, dv;
    TK_DEVICE Consumer(Shared& shared_, const Parameters& p_, int number_) : shared(shared_), p(p_), number(number_) {
      if (leader()) owed() = -1;
    }

    TK_DEVICE bool leader() const { return threadIdx.x % 128 == 0; }
    // The turn to pass when the last part is in memory, the leader's; lists leave no register for it.
    TK_DEVICE int& owed() {
      if constexpr (Listed)
        return shared.listed.owed[number];
      else
        return own_owed;
    }

    // dq[number] is this consumer's again: what it added last has been read or, where turns are taken, is in memory.
    TK_DEVICE void finish_part() {
      if (!p.turns) return wait_stores_read();
      wait_stores();
      if (owed() >= 0) pass_turn(p.turns + owed());
      owed() = -1;
    }

    // Of query tile `step` of the head whose first one is `index`.
    TK_DEVICE int part_of_step(int index, int step) const { return 2 * (index + step) + (in_turn ? 0 : number); }

    // Waits for the next step, and says which query tile it meets; without lists it is `step`. What a list says is read by the
    // lane that will release the slot.
    TK_DEVICE int meet(int step) {
      await(shared.barriers.steps, at);
      if constexpr (Listed) {
        if (lane_index() == 0) step = shared.listed.steps[at.slot].step.tile;
        step = __shfl_sync(0xffffffffu, step, 0);
      }
      return step;
    }
    // The element mask of 64 keys from `key` on, queries from `query` on.
    TK_DEVICE Bits bits(const KeyTile& tile, int key, int query) const {
      if constexpr (Listed) {
        block_lists::Step found = {};
        if (lane_index() == 0) found = shared.listed.steps[at.slot].step;
        const int slot = __shfl_sync(0xffffffffu, found.slot, 0);
        if (slot >= 0) {
          const int size = p.by_keys.block, pitch = size / 16;  // in 16 bits
          const unsigned short* masks;
          if constexpr (staged) {
            masks = reinterpret_cast<const unsigned short*>(shared.masks.rows[at.slot]);
          } else {
            const int row = __shfl_sync(0xffffffffu, found.tile, 0) * Rows % size;
            masks = reinterpret_cast<const unsigned short*>(p.by_keys.masks) + (static_cast<long long>(slot) * size + row) * pitch;
          }
          return {masks + query * pitch + (tile.key + key) % size / 16 + warp_index() % 4, pitch};
        }
      }
      return {};
    }
    // The leader's question: how many tiles of keys add to this query tile before this one.
    TK_DEVICE u32 turn(const KeyTile& tile, int met) const {
      if constexpr (Listed)
        return shared.listed.steps[at.slot].turn;
      else
        return Work{p}.turn(tile, met);
    }

    // Registers to dq[number], its floats from `first` on.
    TK_DEVICE void stage_part(const Part& dq, int first) {
      u32 place = ptx::shared_address(shared.dq[number] + first) + 16 * (threadIdx.x % 128);
      ptx::hold(place);
#pragma unroll
      for (int e = 0; e < Part::elements; e += 4)
        ptx::st_shared_v4(place + 512 * e, make_uint4(__float_as_uint(dq.x[0][e]), __float_as_uint(dq.x[0][e + 1]),
                                                      __float_as_uint(dq.x[0][e + 2]), __float_as_uint(dq.x[0][e + 3])));
    }
    TK_DEVICE void begin_part() {
      if (leader()) finish_part();
      sync(1 + number, 128);
    }
    TK_DEVICE void add_part(const KeyTile& tile, int index, int met) {
      publish_tile();
      sync(1 + number, 128);
      if (!leader()) return;
      const int part = part_of_step(index, met);
      if (p.turns) {
        owed() = part;
        await_turn(p.turns + part, turn(tile, met));
        ptx::fence_proxy_async_global();
      }
      bulk_add(p.dq_sum + static_cast<long long>(part) * part_size, shared.dq[number], in_turn ? 2 * part_size : part_size);
      commit_stores();
    }

    // The same from registers: shared memory is full.
    TK_DEVICE void add_wide_part(const Part& dq, const KeyTile& tile, int index, int met) const {
      const int part = part_of_step(index, met);
      if (p.turns) {
        if (leader()) await_turn(p.turns + part, turn(tile, met));
        sync(1 + number, 128);
      }
      float* place = p.dq_sum + static_cast<long long>(part) * part_size + 4 * (threadIdx.x % 128);
#pragma unroll
      for (int e = 0; e < Part::elements; e += 4)
        ptx::red_add_v4(place + 128 * e, dq.x[0][e], dq.x[0][e + 1], dq.x[0][e + 2], dq.x[0][e + 3]);
      if (p.turns) {
        sync(1 + number, 128);
        if (leader()) pass_turn(p.turns + part);
      }
    }

    // `index`: of the head's first query tile.
    TK_DEVICE void step(const KeyTile& tile, int index, int step) {
      const QTile &q = shared.q[at.slot], &dz = shared.dz[at.slot];
      const float* numbers = shared.stats[at.slot].data;
      auto& ds_tile = shared.ds[in_turn ? number : at.slot];
      typename Pairs::Tile s, dp;
      typename Pairs::Operand weights, ds;
      Part dq;
      const int keys = in_turn ? 0 : 64 * number;
      const int met = meet(step);
      int half = keys;  // held: or descriptors and addresses made of it wait in registers between their uses
      ptx::hold(half);
      mma_fence();
      mma_ABt(s, subtile<64, shape.dim>(shared.k, half, 0), q, false);
      mma_commit();
      if constexpr (!Capped) {
        mma_ABt(dp, subtile<64, shape.dim>(shared.v, half, 0), dz, false);
        mma_commit();
        mma_wait<1>(s);
      } else {  // tanh needs the registers of dp, and later of weights
        mma_wait(s);
      }
      Pairs::weigh(weights, s, p, tile.in, tile.key + keys, met * Rows, numbers, bits(tile, keys, 0));
      mma_fence();
      if constexpr (Capped) {
        mma_ABt(dp, subtile<64, shape.dim>(shared.v, half, 0), dz, false);
        mma_commit();
      }
      mma_AB(dv, weights, dz);
      mma_commit();
      if constexpr (Capped)
        mma_wait(dp, dv);
      else
        mma_wait<1>(dp);
      Pairs::differentiate(ds, dp, s, numbers + Rows);
      int row = keys + 16 * (warp_index() % 4);
      ptx::hold(row);
      store(ds_tile, ds, row, 0);
      publish_tile();
      if constexpr (in_turn)
        sync(1 + number, 128);
      else
        sync(both, 256);
      ptx::hold(half);
      mma_fence();
      if constexpr (Rows == 128)
        mma_AtB(dq, subtile<Keys, 64>(ds_tile, 0, half), shared.k, false);
      else
        mma_AtB(dq, ds_tile, subtile<Keys, 64>(shared.k, 0, half), false);
      mma_commit();
      mma_AB(dk, ds, q);
      mma_commit();
      mma_wait<1>(dq);
      begin_part();
      stage_part(dq, 0);
      if constexpr (in_turn && shape.dim == 128) {  // all 128 columns at once would not fit into the registers
        mma_fence();
        mma_AtB(dq, ds_tile, subtile<Keys, 64>(shared.k, 0, 64), false);
        mma_commit();
        mma_wait(dq);
        stage_part(dq, part_size);
      }
      add_part(tile, index, met);
      mma_wait(dk, dv);
      release(shared.barriers.steps, at);
      at.next();
    }

    // The same where consumers share the columns: each makes the weights and dS of half the queries, for both.
    TK_DEVICE void wide_step(const KeyTile& tile, int index, int step) {
      QTile &q = shared.q[at.slot], &dz = shared.dz[at.slot];
      auto &ds_tile = shared.ds[at.slot], &weights_tile = shared.weights[at.slot];
      const int query = Rows / 2 * number;
      const float* numbers = shared.stats[at.slot].data + query;
      typename Pairs::Tile s, dp;
      typename Pairs::Operand weights, ds;
      Part dq;
      const int met = meet(step);
      mma_fence();
      mma_ABt(s, shared.k, subtile<Rows / 2, shape.dim>(q, query, 0), false);
      mma_commit();
      mma_ABt(dp, shared.v, subtile<Rows / 2, shape.dim>(dz, query, 0), false);
      mma_commit();
      mma_wait<1>(s);
      Pairs::weigh(weights, s, p, tile.in, tile.key, met * Rows + query, numbers, bits(tile, 0, query));
      store(weights_tile, weights, 16 * (warp_index() % 4), query);
      mma_wait(dp);
      Pairs::differentiate(ds, dp, s, numbers + Rows);
      store(ds_tile, ds, 16 * (warp_index() % 4), query);
      publish_tile();
      sync(both, 256);
      const int column = Columns * number;
      mma_fence();
      mma_AtB(dq, ds_tile, subtile<Keys, Columns>(shared.k, 0, column), false);
      mma_commit();
      mma_AB(dv, weights_tile, subtile<Rows, Columns>(dz, 0, column));
      mma_AB(dk, ds_tile, subtile<Rows, Columns>(q, 0, column));
      mma_commit();
      mma_wait<1>(dq);
      add_wide_part(dq, tile, index, met);
      mma_wait(dk, dv);
      release(shared.barriers.steps, at);
      at.next();
    }

    // A step that is the other consumer's. Seen here too, or the parity of a slot's phases would be ambiguous.
    TK_DEVICE void leave_step() {
      await(shared.barriers.steps, at);
      release(shared.barriers.steps, at);
      at.next();
    }
    // Sums of steps in turn: consumer 0 gets the other's dK, consumer 1 the other's dV. Through the tiles of dq, which have been
    // read.
    TK_DEVICE void join() {
      sync(1 + number, 128);
      number == 0 ? hand(dv) : hand(dk);
      sync(both, 256);
      number == 0 ? receive(dk) : receive(dv);
    }
    TK_DEVICE void hand(const Sum& sum) {
      float4* to = reinterpret_cast<float4*>(shared.dq[number]) + threadIdx.x % 128;
#pragma unroll
      for (int e = 0; e < Sum::elements; e += 4)
        to[32 * e] = make_float4(sum.x[0][e], sum.x[0][e + 1], sum.x[0][e + 2], sum.x[0][e + 3]);
    }
    TK_DEVICE void receive(Sum& sum) {
      const float4* from = reinterpret_cast<const float4*>(shared.dq[1 - number]) + threadIdx.x % 128;
#pragma unroll
      for (int e = 0; e < Sum::elements; e += 4) {
        const float4 other = from[32 * e];
        sum.x[0][e] += other.x;
        sum.x[0][e + 1] += other.y;
        sum.x[0][e + 2] += other.z;
        sum.x[0][e + 3] += other.w;
      }
    }

    // Rows or columns of one consumer to their tile, in q's type.
    TK_DEVICE void stage(KTile& to, const Sum& sum) const {
      int row = (wide || in_turn ? 0 : 64 * number) + 16 * (warp_index() % 4), first = wide ? Columns * number : 0;
      ptx::hold(row);  // or the addresses of all parts wait in registers from the start of the kernel
#pragma unroll
      for (int col = 0; col < Columns; col += 32) {
        rt_fl<16, 32> part;
        rt<T, 16, 32> rounded;
        columns(part, sum, col);
        copy(rounded, part);
        store(to, rounded, row, first + col);
      }
    }

    // A staged tile to memory, by this consumer. TMA bounds the rows of a batch entry; those of a packed sequence are
    // followed by another's.
    TK_DEVICE void write_out(KTile& from, const KeyTile& tile, const tensor_map& map, void* data, int columns) const {
      const int valid = tile.in.seq_k - tile.key;
      if (p.cu_seqlens_k == nullptr || valid >= Keys) {
        if (!leader()) return;
        store(gl<KTile, 4>(map), from, {tile.in.batch, tile.kv_head, tile.in.k_begin + tile.key, 0});
        commit_stores();
        return wait_stores_read();
      }
      constexpr int width = 8, chunks = KTile::cols / width;
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x) % 128; i < valid * chunks; i += 128) {
        const int r = i / chunks, col = i % chunks * width;
        if (col >= columns) continue;
        const long long row = tile.in.k_begin + tile.key + r;
        T* to = static_cast<T*>(data) + (row * p.kv_heads + tile.kv_head) * columns + col;
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&from.at(r, col));
      }
      sync(1 + number, 128);
    }

    TK_DEVICE void run() {
      const Work work{p};
      for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
        KeyTile tile;
        if (!work.find(tile, order.task())) continue;
        zero(dk);
        zero(dv);
        u32 met = 0;  // steps of this tile, of which consumers take every other one
        wait(shared.barriers.keys_full, keys_phase);
        keys_phase ^= 1;
        for (int head = work.next_head(tile, 0); head < p.heads; head = work.next_head(tile, head + 1)) {
          const int index = work.index(tile, head);
          const int first = Listed ? 0 : tile.first, end = Listed ? work.steps(tile, head) : tile.end;
          for (int i = first; i < end; ++i)
            if (in_turn && met++ % 2 != number)
              leave_step();
            else if constexpr (wide)
              wide_step(tile, index, i);
            else
              step(tile, index, i);
        }
        if constexpr (!wide)
          if (leader()) finish_part();
        if constexpr (in_turn) join();
        mul(dk, dk, p.scale);
        sync(both, 256);  // no product with k and v is left
        if (!in_turn || number == 0) stage(shared.k, dk);
        if (!in_turn || number == 1) stage(shared.v, dv);
        publish_tile();
        sync(both, 256);
        if (number == 0)
          write_out(shared.k, tile, p.dk, p.dk_data, p.dim);
        else
          write_out(shared.v, tile, p.dv, p.dv_data, p.dim_v);
        if (leader()) arrive(shared.barriers.keys_free);
      }
      if (leader()) wait_stores();
    }
  };

  TK_DEVICE static void run(const Parameters& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
      Barriers& bars = shared.barriers;
      init(bars.keys_full, 1);
      init(bars.keys_free, 2);
      init(bars.ragged, 1);
      init(bars.steps, 1, 8);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup_index() == 0) {
      give_registers<24>();
      if (warp_index() == 0) Producer<Backward>::run(shared, p);
    } else {
      take_registers<240>();
      Consumer(shared, p, warpgroup_index() - 1).run();
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
#define TKPY_ATTENTION_BACKWARD_KERNELS(NAME, INDEX)             \
  TKPY_ATTENTION_BACKWARD(NAME##_plain, bf16, INDEX, false)      \
  TKPY_ATTENTION_BACKWARD(NAME##_capped, bf16, INDEX, true)      \
  TKPY_ATTENTION_BACKWARD(NAME##_plain, fp16, INDEX, false)      \
  TKPY_ATTENTION_BACKWARD(NAME##_capped, fp16, INDEX, true)      \
  TKPY_ATTENTION_DQ(NAME##_dq, bf16, INDEX, false)               \
  TKPY_ATTENTION_DQ(NAME##_dq, fp16, INDEX, false)
#define TKPY_ATTENTION_BACKWARD_BLOCK_KERNELS(NAME, INDEX)            \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_plain, bf16, INDEX, false)    \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_capped, bf16, INDEX, true)    \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_plain, fp16, INDEX, false)    \
  TKPY_ATTENTION_BACKWARD_BLOCKS(NAME##_capped, fp16, INDEX, true)    \
  TKPY_ATTENTION_DQ(NAME##_dq, bf16, INDEX, true)                     \
  TKPY_ATTENTION_DQ(NAME##_dq, fp16, INDEX, true)
