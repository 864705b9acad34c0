// attention backward: the main kernel; rows.cu runs before it, dq.cuh after it
//   P = 2^(c q k^T - log2 e lse)        dV = P^T dz
//   dS = P (dz V^T - delta)             dK = scale dS^T q       dQ = scale dS K        (capped: dS times 1 - tanh^2)
// for one tile of 128 keys of a key head: all query heads that use it, all query tiles that see it, so that dK and dV are
// summed in registers; dQ is summed in memory, in fp32.
// in   q [B,Sq,H,D]  k [B,Sk,Hkv,D]  v [B,Sk,Hkv,Dv]  dz [B,Sq,H,Dv]  bf16 or fp16; or packed | stats (params.h)
// out  dk, dv like k, v | dq_sum: dQ / scale as fp32 fragments
// kernels  attention_backward_<bf16|fp16>_<D>_<plain|capped>, as in the forward
// grid up to one CTA an SM, persistent: tasks by `snake` (schedule.cuh); block 384
// producer   warp 0        gl k, v --TMA--> k, v       gl q, dz --TMA--> q[2], dz[2]   gl stats --bulk--> stats[2]
//              keys    full 1 arrival + bytes, waited by the consumers      free 2: who has stored dk, dv out of the tiles
//              steps   channel: full 1 arrival + bytes, free 8 consumer warps
//            packed, a sequence's last tile runs into the next sequence: those rows are set to zero, as 0 * NaN is NaN;
//            the tiles go through the barrier `ragged` first, then full is 1 arrival
// consumers  2 warpgroups of 64 keys, tiles of S and dP transposed (keys x queries):
//              S^T = k q^T   dP^T = v dz^T   dV += P^T dz under the work on dP   dS^T -> shared ds[2] -> dQ part = dS k
//              dK += dS^T q under the way out of dQ's part: 64 rows of 128 (D = 64), or 64 columns of 128 (D = 128)
//              -> shared dq[w] --bulk add--> gl dq_sum
//            named barriers 1, 2: the 128 threads of one consumer, around dq[w]       3: both, once ds is written (ds has two
//            tiles: who writes one again has met the other after its product with it), and around the way out of dk, dv
//            which go through the tiles of k and v --TMA--> gl; the last tile of a packed sequence by plain stores
// order of dq  any; or, with `turns`, from the last keys to the first: then every bit is the same every time
// precision  products exact, sums fp32; P and dS rounded to q's type as operands      limits  sm_90a; D, Dv <= 128
// cost  flops 2 (3 D + 2 Dv) pairs; bytes 2 (q + dz) a tile of keys, mostly from L2, 8 D a query row and tile of keys in L2
#pragma once

#include "dq.cuh"

namespace tkpy::attention_backward {

template <class T, int Index, bool Capped>
struct Backward {
  static constexpr Shape shape = kShapes[Index];
  static constexpr int Rows = shape.rows, Keys = Shape::kKeys, Stages = Shape::kStages, both = 3;

  using KTile = st<T, Keys, shape.dim>;
  using QTile = st<T, Rows, shape.dim>;
  using Stats = sv<float, 2 * Rows>;
  using Work = Schedule<Rows, Keys>;
  using Scores = rt_fl<16, Rows>;   // of 16 keys and the queries of a step
  using Operand = rt<T, 16, Rows>;  // P^T or dS^T
  using Sum = rt_fl<16, shape.dim>;
  using Part = rt_fl<16, 64>;

  struct Barriers {
    mbarrier keys_full, keys_free, ragged;
    channel<Stages> steps;
  };
  struct Shared {
    KTile k, v;
    QTile q[Stages], dz[Stages];
    st<T, Keys, Rows> ds[Stages];
    float dq[2][Shape::kPart];
    Stats stats[Stages];
    Barriers barriers;
  };
  static_assert(sizeof(Shared) == shape.shared_bytes(), "the launcher asks for shared_bytes(): it must be the truth");
  static_assert(shape.shared_bytes() <= 232448, "a CTA has at most 227 KiB of shared memory");

  // ---- Producer: one warp, of which lane 0 issues ------------------------------------------------------------------
  struct Fill {
    mbarrier *full, *ragged;
    u32 phase = 0;  // of ragged
  };

  // Two tiles and what `more` loads, `bytes` in all; of the tiles, the rows from `valid` on belong to another sequence.
  template <class Tile, class More>
  TK_DEVICE static void fill(Fill& at, bool packed, int valid, Tile& a, const tensor_map& map_a, Tile& b,
                             const tensor_map& map_b, const int (&place)[4], u32 bytes, More more) {
    const bool cut = packed && valid < Tile::rows;
    mbarrier& bar = cut ? *at.ragged : *at.full;
    if (lane_index() == 0) {
      arrive_expect(bar, bytes);
      load(a, gl<Tile, 4>(map_a), place, bar);
      load(b, gl<Tile, 4>(map_b), place, bar);
      more(bar);
    }
    __syncwarp();
    if (!cut) return;
    wait(bar, at.phase);
    at.phase ^= 1;
    constexpr int width = 8, chunks = Tile::cols / width;  // elements of 16 bytes
#pragma unroll 1
    for (int i = lane_index(); i < (Tile::rows - valid) * chunks; i += 32) {
      const int row = valid + i / chunks, col = i % chunks * width;
      *reinterpret_cast<uint4*>(&a.at(row, col)) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(&b.at(row, col)) = make_uint4(0, 0, 0, 0);
    }
    publish_tile();
    __syncwarp();
    if (lane_index() == 0) arrive(*at.full);
  }

  TK_DEVICE static void produce(Shared& shared, const Params& p) {
    Barriers& bars = shared.barriers;
    const Work work{p};
    ring<Stages> at;
    u32 keys_phase = 1;
    Fill to{nullptr, &bars.ragged};
    for (snake order = snake::of_ctas(); order.more(work.tasks()); order.next()) {
      KeyTile tile;
      if (!work.find(tile, order.task())) continue;
      wait(bars.keys_free, keys_phase);
      keys_phase ^= 1;
      to.full = &bars.keys_full;
      fill(to, work.packed(), tile.in.seq_k - tile.key, shared.k, p.k, shared.v, p.v,
           {tile.in.batch, tile.kv_head, tile.in.k_begin + tile.key, 0}, 2 * KTile::bytes, [](mbarrier&) {});
      for (int head = work.next_head(tile, 0); head < p.heads; head = work.next_head(tile, head + 1))
        for (int step = tile.first; step < tile.end; ++step, at.next()) {
          acquire(bars.steps, at);
          to.full = &bars.steps.full[at.slot];
          fill(to, work.packed(), tile.in.seq_q - step * Rows, shared.q[at.slot], p.q, shared.dz[at.slot], p.dz,
               {tile.in.batch, head, tile.in.q_begin + step * Rows, 0}, 2 * QTile::bytes + Stats::bytes,
               [&](mbarrier& bar) {
                 const long long index = work.index(tile, head) + step;
                 bulk_load(shared.stats[at.slot].data, p.stats + index * Stats::length, Stats::length, bar);
               });
        }
    }
  }

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

    // Of this lane's keys (rows g and g + 8 of the warp's 16), the queries that do not see them; and of keys that there
    // are not, all.
    TK_DEVICE void hide(Scores& s, const KeyTile& tile, int query) const {
      const int diagonal = tile.in.diagonal(), column = query + 2 * (lane_index() % 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = tile.key + 64 * number + 16 * (warp_index() % 4) + 8 * half + lane_index() / 4;
        int from = p.right >= 0 ? key - diagonal - p.right - column : 0;
        const int to = p.left >= 0 ? key - diagonal + p.left - column : Rows;
        if (key >= tile.in.seq_k) from = Rows;
#pragma unroll
        for (int e = 2 * half; e < Scores::elements; e += 4)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int col = 8 * (e / 4) + i;
            s.x[0][e + i] = col >= from && col <= to ? s.x[0][e + i] : -fn::infinity;
          }
      }
    }
    TK_DEVICE bool all_seen(const KeyTile& tile, int query) const {
      const int key = tile.key + 64 * number, last = key + 63, diagonal = tile.in.diagonal();
      return last < tile.in.seq_k && (p.right < 0 || query >= last - diagonal - p.right) &&
             (p.left < 0 || query + Rows - 1 <= key - diagonal + p.left);
    }

    // What is known of this lane's two queries of piece `piece` (8 queries): stats[part][8 piece + 2 (lane % 4) ..].
    TK_DEVICE static float2 known(const Stats& stats, int part, int piece) {
      return ptx::ld_shared_v2(ptx::shared_address(stats.data + part * Rows + 8 * piece + 2 * (lane_index() % 4)));
    }

    // S^T to P^T, rounded; s becomes P^T times the slope of the cap, 1 - tanh^2.
    TK_DEVICE void weigh(Operand& weights, Scores& s, const KeyTile& tile, int query, const Stats& stats) const {
      const float outer = Capped ? p.cap_outer : 0.0f;
      if constexpr (Capped) {
        const float inner = p.cap_inner;
        if (outer > 0.0f)
          map(s, s, [=](float x) { return fn::tanh(inner * x); });
        else
          mul(s, s, inner);
      }
      if (!all_seen(tile, query)) hide(s, tile, query);
      const float c = !Capped ? p.scale_log2 : outer > 0.0f ? outer : 1.0f, bend = outer > 0.0f ? -1.0f : 0.0f;
#pragma unroll
      for (int e = 0; e < Scores::elements; e += 2) {
        const float2 lse = known(stats, 0, e / 4);
        float x = s.x[0][e], y = s.x[0][e + 1];
        s.x[0][e] = fn::exp2(fmaf(x, c, -lse.x));
        s.x[0][e + 1] = fn::exp2(fmaf(y, c, -lse.y));
        weights.x[0][e / 2] = ptx::pack<T>(s.x[0][e], s.x[0][e + 1]);
        if constexpr (Capped) {  // of hidden ones, minus infinity, the slope is 0
          x = fmaxf(x, -1.0f);
          y = fmaxf(y, -1.0f);
          s.x[0][e] *= fmaf(bend * x, x, 1.0f);
          s.x[0][e + 1] *= fmaf(bend * y, y, 1.0f);
        }
      }
    }

    // dS^T = P^T (dP^T - delta), slopes included in P^T.
    TK_DEVICE void differentiate(Operand& ds, const Scores& dp, const Scores& s, const Stats& stats) const {
#pragma unroll
      for (int e = 0; e < Scores::elements; e += 2) {
        const float2 delta = known(stats, 1, e / 4);
        ds.x[0][e / 2] = ptx::pack<T>(s.x[0][e] * (dp.x[0][e] - delta.x), s.x[0][e + 1] * (dp.x[0][e + 1] - delta.y));
      }
    }

    // dq[number] is this consumer's again: what it added last has been read or, where turns are taken, is in memory.
    TK_DEVICE void finish_part() {
      if (!p.turns) return wait_stores_read();
      wait_stores();
      if (owed >= 0) pass_turn(p.turns + owed);
      owed = -1;
    }

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
      const int part = 2 * (index + step) + number;
      if (p.turns) {
        owed = part;
        await_turn(p.turns + part, Work{p}.turn(tile, step));
        ptx::fence_proxy_async_global();
      }
      bulk_add(p.dq_sum + static_cast<long long>(part) * Shape::kPart, shared.dq[number], Shape::kPart);
      commit_stores();
    }

    // `index`: of the head's first query tile.
    TK_DEVICE void step(const KeyTile& tile, int index, int step) {
      const QTile &q = shared.q[at.slot], &dz = shared.dz[at.slot];
      const Stats& stats = shared.stats[at.slot];
      auto& ds_tile = shared.ds[at.slot];
      Scores s, dp;
      Operand weights, ds;
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
      weigh(weights, s, tile, step * Rows, stats);
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
      differentiate(ds, dp, s, stats);
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

    // Rows of one consumer to their tile, in q's type.
    TK_DEVICE void stage(KTile& to, const Sum& sum) const {
      int row = 64 * number + 16 * (warp_index() % 4);
      ptx::hold(row);  // or the addresses of all parts wait in registers from the start of the kernel
#pragma unroll
      for (int col = 0; col < shape.dim; col += 32) {
        rt_fl<16, 32> part;
        rt<T, 16, 32> rounded;
        columns(part, sum, col);
        copy(rounded, part);
        store(to, rounded, row, col);
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
          for (int i = tile.first; i < tile.end; ++i) step(tile, index, i);
        }
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
      if (warp_index() == 0) produce(shared, p);
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
