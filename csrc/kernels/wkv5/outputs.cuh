// Sums over key channels: y_t = r_t (S + diag(u) k_t v_t^T), S <- diag(w) S + k_t v_t^T. N / 16 warps, which share the
// scores of a chunk and have 16 value channels of S each.
//   prepare  warp w, 16 key channels: r w^t, k w^(n-1-s) as operands, and its share of A[t,s] = sum_i r w^(t-1-s) k
//   compute  warp w, 16 value channels: y = (r w^t) S + A v;  S <- w^n S + (k w^(n-1-s))^T v, S^T in registers
// One barrier a chunk: a chunk is computed while the next is prepared, in the other of two buffers.
#pragma once

#include "scores.cuh"

namespace tkpy::wkv5 {

template <class T, int N>
struct Outputs {
  static constexpr int warps = N / 16, raw = raw_parts<T>;
  // Of one chunk: operands of the state's products, shares of the scores.
  struct Prepared {
    st<bf16, kChunk, N> query[raw], key[2];
    Shares<warps> scores;
    float fade[N];  // w^n - 1
  };
  struct Shared {
    Slot<T, N, 3> slots[kStages];
    Prepared prepared[2];
    Rates<N> of;
    float fade[N];  // of a whole chunk
    st<T, 16, 16> scratch[warps];
    channel<kStages> filled;
  };
  static_assert(sizeof(Shared) == kShared[shape_of(N)].outputs[raw - 1], "what the launcher asks for must be the truth");

  Tile state[N / 16];  // S^T: 16 value channels (of this warp) x 16 key channels each

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int slot = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), warp = warp_index();
    Task task;
    if (!find(task, p, slot)) return;
    Feed<T, N, 3> feed{shared.slots, &shared.filled, p, {kR, kK, kV}, task, head, false};
    shared.of.begin(p, head);
    const float* from = p.states    ? p.states + matrix_at(p, slot, head)
                        : p.initial ? p.initial + matrix_at(p, task.sequence, head) : nullptr;
    Outputs work;
    auto& stage = reinterpret_cast<Stage<N>&>(shared);
    static_assert(sizeof(stage) <= offsetof(Shared, of), "a state must fit where chunks are");
    stage.template read<true>(work.state, from, p.size, 16 * warp);
    feed.begin(warps);
    work.sweep(shared, feed, p, warp);
    if (p.final && task.last())
      stage.template write<true>(p.final + matrix_at(p, task.sequence, head), work.state, p.size, 16 * warp);
  }

 private:
  // All chunks of the segment.
  TK_DEVICE void sweep(Shared& shared, Feed<T, N, 3>& feed, const Params& p, int warp) {
    const float* rate = shared.of.rate + 16 * warp;
    const RowPowers late(rate, true), early(rate, false);
    const int mine = 16 * warp + lane_index() % 16;
    shared.fade[mine] = fade_of(shared.of.rate[mine], kChunk);
    __syncwarp();  // two lanes have written each, and read it in `prepare`
    const Meeting meet(false);
    const int chunks = feed.task.chunks();
#pragma unroll 1
    for (int step = 1 - kStages; step < chunks; ++step) {
      if (warp == 0) feed.fill();
      if (step < -1) continue;
      const ring<kStages> now = place_of(step), ahead = place_of(step + 1);
      if (step + 1 < chunks) {
        await(*feed.filled, ahead);
        const int n = feed.tokens(step + 1);
        feed.clean(feed.slots[ahead.slot], n);
        prepare(shared, shared.prepared[(step + 1) & 1], feed.slots[ahead.slot], late, early, meet, warp, n);
      }
      if (step >= 0) {
        Tile y;
        compute(y, shared.prepared[step & 1], feed.slots[now.slot], warp);
        __syncwarp();
        release(*feed.filled, now);
        write_rows(p.y, p, feed, step, 16 * warp, y, shared.scratch[warp]);
      }
      __syncthreads();
    }
  }

  template <class Chunk>
  TK_DEVICE static void prepare(Shared& shared, Prepared& out, const Chunk& chunk, const RowPowers& late,
                                const RowPowers& early, const Meeting& meet, int warp, int n) {
    rt<T, 16, 16> r_raw, k_raw;
    load(r_raw, chunk.x[kR], 0, 16 * warp);
    load(k_raw, chunk.x[kK], 0, 16 * warp);
    Tile r, k, scores;
    copy(r, r_raw);
    copy(k, k_raw);
    score(scores, r, k, r_raw, k_raw, late, early, meet, shared.of.u + 16 * warp);
    out.scores.leave(scores, warp);
    const int mine = 16 * warp + lane_index() % 16;
    out.fade[mine] = n == kChunk ? shared.fade[mine] : fade_of(shared.of.rate[mine], n);
#pragma unroll
    for (int e = 0; e < 8; ++e) k.x[0][e] *= early.whole(e);
    if (n == kChunk) {
#pragma unroll
      for (int e = 0; e < 8; ++e) r.x[0][e] *= late.whole(e);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        r.x[0][e] *= power(shared.of.rate[16 * warp + tile_col(e)], max(tile_row(e) - (kChunk - n), 0));
    }
    leave(out.query, r, warp);
    leave(out.key, k, warp);
  }

  // This warp's share of y of a chunk; S goes on to its end.
  template <class Chunk>
  TK_DEVICE void compute(Tile& y, const Prepared& in, const Chunk& chunk, int warp) {
    rt<T, 16, 16> v_raw;
    load_transposed(v_raw, chunk.x[kV], 0, 16 * warp);
    Parts<raw> v, scores;
    split(v, v_raw);
    in.scores.add_up(scores);
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
      for (int i = 0; i < 2; ++i) load_transposed(key.part[i], in.key[i], 0, 16 * c);
      multiply(state[c], v, key);
    }
  }
};

}  // namespace tkpy::wkv5
