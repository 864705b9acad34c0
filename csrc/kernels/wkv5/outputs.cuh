// Sums over key channels: y_t = r_t (S + diag(u) k_t v_t^T), S <- diag(w) S + k_t v_t^T; backwards, with r and k, v and gy
// exchanged, gv. N / 16 warps, which share the scores of a chunk and have 16 value channels of S each.
//   prepare  warp w, 16 key channels: r w^t, k w^(n-1-s) as operands, and its share of A[t,s] = sum_i r w^(t-1-s) k
//   compute  warp w, 16 value channels: y = (r w^t) S + A v;  S <- w^n S + (k w^(n-1-s))^T v, S^T in registers
// One barrier a chunk: a chunk is computed while the next is prepared, in the other of two buffers.
#pragma once

#include "chunk.cuh"

namespace tkpy::wkv5 {

// Powers that a lane needs of its four key channels, in rows g and g + 8 of a chunk: the same for every chunk.
struct Powers {
  float one[4], eight[4];         // w^1, w^8
  float late[2][4], early[2][4];  // at level L = 4, 8: w^(t mod L), w^(L-1 - s mod L)
  int near;                       // the levels of elements 0 and (from bit 8 on) 1: where g and their column meet

  TK_DEVICE Powers(const Params& p, int head, int channel, bool backwards) {
    const int g = lane_index() / 4;
    const auto level = [&](int col) { return backwards ? level_of(col, g) : level_of(g, col); };
    near = level(tile_col(0)) | level(tile_col(1)) << 8;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int c = channel + tile_col(q / 2 * 4 + q % 2);
      const float rate = rate_of(p, head, c);
      one[q] = power(rate, 1);
      eight[q] = power(rate, 8);
#pragma unroll
      for (int l = 0; l < 2; ++l) {
        late[l][q] = power(rate, g % (4 << l));
        early[l][q] = power(rate, (4 << l) - 1 - g % (4 << l));
      }
    }
  }
  static constexpr TK_HD int channel_of(int e) { return 2 * (e / 4) + e % 2; }
  // w^t and w^(15-t), t the row of element e.
  TK_DEVICE float read(int e) const {
    const int q = channel_of(e);
    return e / 2 % 2 ? late[1][q] * eight[q] : late[1][q];
  }
  TK_DEVICE float write(int e) const {
    const int q = channel_of(e);
    return e / 2 % 2 ? early[1][q] : early[1][q] * eight[q];
  }
  // The row of element e of a tile, scaled as the later (the earlier) of a pair at level 2 << l.
  TK_DEVICE float later(float x, int l, int e) const {
    const int q = channel_of(e);
    return l > 0 ? x * late[l - 1][q] : lane_index() & 4 ? x * one[q] : x;
  }
  TK_DEVICE float earlier(float x, int l, int e) const {
    const int q = channel_of(e);
    return l > 0 ? x * early[l - 1][q] : lane_index() & 4 ? x : x * one[q];
  }
  // Whether the query in row(e) and the key in col(e) meet at this level (not at any: the key is not before it).
  template <bool Backwards>
  TK_DEVICE bool meet(int e, int level) const {
    const int query = e / 2 % 2, key = e / 4;  // halves of the chunk
    return query == key ? near & level << 8 * (e % 2) : (query > key) != Backwards && level == 8;
  }
};

template <class T, int N, bool Backwards>
struct Outputs {
  static constexpr int warps = N / 16, raw = raw_parts<T>;

  // Of one chunk: operands of the state's products, shares of the scores by fragments.
  struct Prepared {
    st<bf16, kChunk, N> query[raw], key[2];
    float4 scores[warps][2][32];
    float fade[N];  // w^n - 1
  };
  struct Shared {
    Prepared prepared[2];
    float rate[N], fade[N], u[N];  // fade: of a whole chunk
    st<T, 16, 16> scratch[warps];
  };
  enum { kR, kK, kValues };  // of a slot: r, k, and v, backwards gy

  Tile state[N / 16];  // S^T: 16 value channels (of this warp) x 16 key channels each

  TK_DEVICE void begin_state(const float* from, const Params& p, int warp) {
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      zero(state[c]);
      if (from) read_state<true>(state[c], from, p, 16 * warp, 16 * c);
    }
  }
  TK_DEVICE void leave_state(float* to, const Params& p, int warp) const {
#pragma unroll
    for (int c = 0; c < N / 16; ++c) write_state<true>(to, state[c], p, 16 * warp, 16 * c);
  }
  // Tables of all key channels; a barrier follows before they are read.
  TK_DEVICE static void begin(Shared& shared, const Params& p, int head) {
    for (int i = static_cast<int>(threadIdx.x); i < N; i += 32 * warps) {
      shared.rate[i] = rate_of(p, head, i);
      shared.fade[i] = fade_of(shared.rate[i], kChunk);
      shared.u[i] = bonus_of(p, head, i);
    }
  }

  // All chunks of the segment.
  template <class Feed>
  TK_DEVICE void sweep(Shared& shared, Feed& feed, const Params& p, void* out, int warp) {
    const Powers power_of(p, feed.head, 16 * warp, Backwards);
    const int chunks = feed.task.chunks();
    ring<kStages> now, ahead;
    const auto make_ready = [&](int step) {
      await(*feed.filled, ahead);
      prepare(shared, shared.prepared[step % 2], feed.slots[ahead.slot], power_of, warp, feed.tokens(step));
      ahead.next();
    };
    if (chunks > 0) make_ready(0);
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < chunks; ++step, now.next()) {
      if (warp == 0) feed.fill();
      if (step + 1 < chunks) make_ready(step + 1);
      const int n = feed.tokens(step);
      Tile y;
      compute(y, shared.prepared[step % 2], feed.slots[now.slot], warp, n);
      __syncwarp();
      release(*feed.filled, now);
      write_rows(out, p, feed.task, feed.first(step), n, feed.head, 16 * warp, y, shared.scratch[warp]);
      __syncthreads();
    }
  }

 private:
  template <class Chunk>
  TK_DEVICE static void prepare(Shared& shared, Prepared& out, const Chunk& chunk, const Powers& power_of, int warp, int n) {
    rt<T, 16, 16> r_raw, k_raw;
    fetch(r_raw, chunk.x[kR], 16 * warp, n);
    fetch(k_raw, chunk.x[kK], 16 * warp, n);
    Tile r, k, scores;
    copy(r, r_raw);
    copy(k, k_raw);
    between(scores, r, k, r_raw, k_raw, power_of, shared.u + 16 * warp);
    Tile read, write;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      read.x[0][e] = r.x[0][e] * power_of.read(e);
      write.x[0][e] = k.x[0][e] * power_of.write(e);
    }
    const int mine = 16 * warp + lane_index() % 16;
    float fade = shared.fade[mine];
    if (n < kChunk) {
      fade = fade_of(shared.rate[mine], n);
#pragma unroll
      for (int e = 0; e < 8; ++e)
        write.x[0][e] = k.x[0][e] * power(shared.rate[16 * warp + tile_col(e)], max(n - 1 - tile_row(e), 0));
    }
    out.fade[mine] = fade;
    leave(out.query, Backwards ? write : read, warp);
    leave(out.key, Backwards ? read : write, warp);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      out.scores[warp][h][lane_index()] =
          make_float4(scores.x[0][4 * h], scores.x[0][4 * h + 1], scores.x[0][4 * h + 2], scores.x[0][4 * h + 3]);
  }

  // This warp's share of y of a chunk; S goes on to its end.
  template <class Chunk>
  TK_DEVICE void compute(Tile& y, const Prepared& in, const Chunk& chunk, int warp, int n) {
    rt<T, 16, 16> v_raw;
    fetch_transposed(v_raw, chunk.x[kValues], 16 * warp, n);
    Parts<raw> v, scores;
    split(v, v_raw);
    add_up(scores, in);
    zero(y);
    multiply(y, scores, v);
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      Parts<raw> query, before;
#pragma unroll
      for (int i = 0; i < raw; ++i) load(query.part[i], in.query[i], 0, 16 * c);
      split(before, state[c]);
      multiply(y, query, before);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float fade = in.fade[16 * c + tile_col(e)];
        state[c].x[0][e] = fmaf(state[c].x[0][e], fade, state[c].x[0][e]);
      }
      Parts<2> key;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        rt_bf<16, 16, Layout::col> turned;
        load(turned, in.key[i], 0, 16 * c);
        transpose(key.part[i], turned);
      }
      multiply(state[c], v, key);
    }
  }

  template <int Count>
  TK_DEVICE static void leave(st<bf16, kChunk, N> (&to)[Count], const Tile& x, int warp) {
    Parts<Count> parts;
    split(parts, x);
#pragma unroll
    for (int i = 0; i < Count; ++i) store(to[i], parts.part[i], 0, 16 * warp);
  }

  // A[query, key] over this warp's channels: level by level, and r u k on the diagonal.
  TK_DEVICE static void between(Tile& scores, const Tile& r, const Tile& k, const rt<T, 16, 16>& r_raw,
                                const rt<T, 16, 16>& k_raw, const Powers& power_of, const float* u) {
    float own[2] = {};
#pragma unroll
    for (int e = 0; e < 8; ++e) own[e / 2 % 2] += r.x[0][e] * u[tile_col(e)] * k.x[0][e];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      own[h] += __shfl_xor_sync(0xffffffffu, own[h], 1);
      own[h] += __shfl_xor_sync(0xffffffffu, own[h], 2);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) scores.x[0][e] = tile_row(e) == tile_col(e) ? own[e / 2 % 2] : 0.0f;
#pragma unroll
    for (int l = -1; l < 3; ++l) {
      Parts<raw> late, early;
      if (l < 0) {  // neighbours: no decay between them
        split(late, r_raw);
        split(early, k_raw);
      } else {
        Tile scaled;
#pragma unroll
        for (int e = 0; e < 8; ++e) scaled.x[0][e] = power_of.later(r.x[0][e], l, e);
        split(late, scaled);
#pragma unroll
        for (int e = 0; e < 8; ++e) scaled.x[0][e] = power_of.earlier(k.x[0][e], l, e);
        split(early, scaled);
      }
      Tile product;
      zero(product);
      if constexpr (Backwards)
        multiply(product, early, late);
      else
        multiply(product, late, early);
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (power_of.meet<Backwards>(e, 1 << (l + 1))) scores.x[0][e] = product.x[0][e];
    }
  }

  TK_DEVICE static void add_up(Parts<raw>& dst, const Prepared& in) {
    Tile sum;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float4 all = in.scores[0][h][lane_index()];
#pragma unroll
      for (int w = 1; w < warps; ++w) {
        const float4 share = in.scores[w][h][lane_index()];
        all = make_float4(all.x + share.x, all.y + share.y, all.z + share.z, all.w + share.w);
      }
      sum.x[0][4 * h] = all.x;
      sum.x[0][4 * h + 1] = all.y;
      sum.x[0][4 * h + 2] = all.z;
      sum.x[0][4 * h + 3] = all.w;
    }
    split(dst, sum);
  }
};

// A kernel of its own: the chunks of a segment, one way or the other.
template <class T, int N, bool Backwards>
struct Sweep {
  using Work = Outputs<T, N, Backwards>;
  struct Shared {
    Slot<T, N, 3> slots[kStages];
    typename Work::Shared work;
    channel<kStages> filled;
  };
  static_assert(sizeof(Shared) == kShared[shape_of(N)].sweep[raw_parts<T> - 1],
                "what the launcher asks for must be the truth");

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int slot = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), warp = warp_index();
    Task task;
    if (!find(task, p, slot)) return;
    Feed<T, N, 3> feed{shared.slots, &shared.filled, {&p.r, &p.k, Backwards ? &p.gy : &p.v}, task, head, Backwards};
    Work work;
    const float *states = Backwards ? p.g_states : p.states, *given = Backwards ? p.g_final : p.initial;
    const float* from = states ? states + matrix_at(p, slot, head)
                        : given ? given + matrix_at(p, task.sequence, head) : nullptr;
    work.begin_state(from, p, warp);
    work.begin(shared.work, p, head);
    feed.begin(Work::warps);
    work.sweep(shared.work, feed, p, Backwards ? p.gv : p.y, warp);
    float* to = Backwards ? p.g_initial : p.final;
    if (to && (Backwards ? task.segment == 0 : task.last())) work.leave_state(to + matrix_at(p, task.sequence, head), p, warp);
  }
};

}  // namespace tkpy::wkv5
