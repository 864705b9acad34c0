// attention backward: the main kernel; rows.cu runs before it, dq.cuh after it
//   P = 2^(c q k^T - log2 e lse)        dV = P^T dz
//   dS = P (dz V^T - delta)             dK = scale dS^T q       dQ = scale dS K        (capped: dS times 1 - tanh^2)
// for one tile of keys of a key head (128, D = 256: 64): all query heads that use it, all query tiles that see it, so that dK and dV are
// summed in registers; dQ is summed in memory, in fp32.
// in   q [B,Sq,H,D]  k [B,Sk,Hkv,D]  v [B,Sk,Hkv,Dv]  dz [B,Sq,H,Dv]  bf16 or fp16; or packed | stats (params.h)
// out  dk, dv like k, v | dq_sum: dQ / scale as fp32 fragments
// kernels  attention_backward_<bf16|fp16>_<D>_<plain|capped>, as in the forward
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
//   D = 256    32 of 64 queries each: S^T and dP^T, then P^T, dS^T -> shared weights[2], ds[2]; of 128 columns each:
//              dQ part = dS k, dV += P^T dz, dK += dS^T q; dQ's part from registers --red--> gl dq_sum
//              named barriers 1, 2: the 128 threads of one consumer, around dq[w] or a turn      3: both, once the tiles
//              that they exchange are written (two of each: who writes one again has met the other after its products
//              with it), and around the way out of dk, dv
//              which go through the tiles of k and v --TMA--> gl; the last tile of a packed sequence by plain stores
// order of dq  any; or, with `turns`, from the last keys to the first: then every bit is the same every time
// precision  products exact, sums fp32; P and dS rounded to q's type as operands      limits  sm_90a; D, Dv <= 256
// cost  flops 2 (3 D + 2 Dv) pairs; bytes 2 (q + dz) a tile of keys, mostly from L2, 8 D a query row and tile of keys in L2
#pragma once

#include "dq.cuh"
#include "producer.cuh"
#include "scores.cuh"

namespace tkpy::attention_backward {

template <class T, int Index, bool Capped>
struct Backward {
  static constexpr Shape shape = kShapes[Index];
  static constexpr int Rows = shape.rows, Keys = shape.keys, Stages = Shape::kStages, both = 3;
  static constexpr bool wide = shape.wide();
  static constexpr int part_size = shape.part();
  static constexpr int Columns = wide ? shape.dim / 2 : shape.dim;  // of a consumer's dK and dV

  using KTile = st<T, Keys, shape.dim>;
  using QTile = st<T, Rows, shape.dim>;
  using Stats = sv<float, 2 * Rows>;
  using Work = Schedule<Rows, Keys>;
  using Pairs = Scores<T, wide ? Rows / 2 : Rows, Capped>;
  using Sum = rt_fl<16, Columns>;
  using Part = rt_fl<16, part_size / 64>;

  struct Barriers {
    mbarrier keys_full, keys_free, ragged;
    channel<Stages> steps;
  };
  struct ByKeys {
    st<T, Keys, Rows> ds[Stages];
    float dq[2][part_size];
  };
  struct ByColumns {
    st<T, Keys, Rows> ds[Stages], weights[Stages];
  };
  struct Shared : choose<wide, ByColumns, ByKeys>::type {
    KTile k, v;
    QTile q[Stages], dz[Stages];
    Stats stats[Stages];
    Barriers barriers;
  };
  static_assert(sizeof(Shared) == shape.shared_bytes(), "the launcher asks for shared_bytes(): it must be the truth");
  static_assert(shape.shared_bytes() <= 232448, "a CTA has at most 227 KiB of shared memory");

  // ---- Consumers -----------------------------------------------------------------------------------------------------
  struct Consumer {
    Shared& shared;
    const Params& p;
    const int number;  // 0 or 1
    ring<Stages> at;
    u32 keys_phase = 0;
    int owed = -1;  // the turn to pass when the last part is in memory; the leader's
    Sum dk, dv;
    TK_DEVICE Consumer(Shared& shared_, const Params& p_, int number_) : shared(shared_), p(p_), number(number_) {}

    TK_DEVICE bool leader() const { return threadIdx.x % 128 == 0; }

    // dq[number] is this consumer's again: what it added last has been read or, where turns are taken, is in memory.
    TK_DEVICE void finish_part() {
      if (!p.turns) return wait_stores_read();
      wait_stores();
      if (owed >= 0) pass_turn(p.turns + owed);
      owed = -1;
    }

    // Of query tile `step` of the head whose first one is `index`.
    TK_DEVICE int part_of_step(int index, int step) const { return 2 * (index + step) + number; }

    TK_DEVICE void add_part(const Part& dq, const KeyTile& tile, int index, int step) {
      if (leader()) finish_part();
      sync(1 + number, 128);
      u32 place = ptx::shared_address(shared.dq[number]) + 16 * (threadIdx.x % 128);
      ptx::hold(place);
#pragma unroll
      for (int e = 0; e < Part::elements; e += 4)
        ptx::st_shared_v4(place + 512 * e, make_uint4(__float_as_uint(dq.x[0][e]), __float_as_uint(dq.x[0][e + 1]),
                                                      __float_as_uint(dq.x[0][e + 2]), __float_as_uint(dq.x[0][e + 3])));
      publish_tile();
      sync(1 + number, 128);
      if (!leader()) return;
      const int part = part_of_step(index, step);
      if (p.turns) {
        owed = part;
        await_turn(p.turns + part, Work{p}.turn(tile, step));
        ptx::fence_proxy_async_global();
      }
      bulk_add(p.dq_sum + static_cast<long long>(part) * part_size, shared.dq[number], part_size);
      commit_stores();
    }

    // The same from registers: shared memory is full.
    TK_DEVICE void add_wide_part(const Part& dq, const KeyTile& tile, int index, int step) const {
      const int part = part_of_step(index, step);
      if (p.turns) {
        if (leader()) await_turn(p.turns + part, Work{p}.turn(tile, step));
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
      auto& ds_tile = shared.ds[at.slot];
      typename Pairs::Tile s, dp;
      typename Pairs::Operand weights, ds;
      Part dq;
      await(shared.barriers.steps, at);
      int half = 64 * number;  // held: or descriptors and addresses made of it wait in registers between their uses
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
      Pairs::weigh(weights, s, p, tile.in, tile.key + 64 * number, step * Rows, numbers);
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
      int row = 64 * number + 16 * (warp_index() % 4);
      ptx::hold(row);
      store(ds_tile, ds, row, 0);
      publish_tile();
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
      add_part(dq, tile, index, step);
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
      await(shared.barriers.steps, at);
      mma_fence();
      mma_ABt(s, shared.k, subtile<Rows / 2, shape.dim>(q, query, 0), false);
      mma_commit();
      mma_ABt(dp, shared.v, subtile<Rows / 2, shape.dim>(dz, query, 0), false);
      mma_commit();
      mma_wait<1>(s);
      Pairs::weigh(weights, s, p, tile.in, tile.key, step * Rows + query, numbers);
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
      add_wide_part(dq, tile, index, step);
      mma_wait(dk, dv);
      release(shared.barriers.steps, at);
      at.next();
    }

    // Rows or columns of one consumer to their tile, in q's type.
    TK_DEVICE void stage(KTile& to, const Sum& sum) const {
      int row = (wide ? 0 : 64 * number) + 16 * (warp_index() % 4), first = wide ? Columns * number : 0;
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
        wait(shared.barriers.keys_full, keys_phase);
        keys_phase ^= 1;
        for (int head = work.next_head(tile, 0); head < p.heads; head = work.next_head(tile, head + 1)) {
          const int index = work.index(tile, head);
          for (int i = tile.first; i < tile.end; ++i)
            if constexpr (wide)
              wide_step(tile, index, i);
            else
              step(tile, index, i);
        }
        if constexpr (!wide)
          if (leader()) finish_part();
        mul(dk, dk, p.scale);
        sync(both, 256);  // no product with k and v is left
        stage(shared.k, dk);
        stage(shared.v, dv);
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

  TK_DEVICE static void run(const Params& p) {
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
#define TKPY_ATTENTION_DQ(NAME, T, INDEX)                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                    \
      attention_backward_##T##_##NAME(const __grid_constant__ tkpy::attention_backward::Params p) {    \
    tkpy::attention_backward::RoundDq<tk::T, INDEX>::run(p);                                           \
  }
#define TKPY_ATTENTION_BACKWARD_KERNELS(NAME, INDEX)             \
  TKPY_ATTENTION_BACKWARD(NAME##_plain, bf16, INDEX, false)      \
  TKPY_ATTENTION_BACKWARD(NAME##_capped, bf16, INDEX, true)      \
  TKPY_ATTENTION_BACKWARD(NAME##_plain, fp16, INDEX, false)      \
  TKPY_ATTENTION_BACKWARD(NAME##_capped, fp16, INDEX, true)      \
  TKPY_ATTENTION_DQ(NAME##_dq, bf16, INDEX)                      \
  TKPY_ATTENTION_DQ(NAME##_dq, fp16, INDEX)
