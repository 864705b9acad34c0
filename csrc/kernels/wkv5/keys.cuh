// Sums over value channels: gr_t = S_{t-1} gy_t + u k_t (v_t . gy_t), S carried as in the forward; backwards, with r and k, v
// and gy exchanged, gk_s = G_s v_s + u r_s (v_s . gy_s), and beside it gv_s = G_s^T k_s + .. from the same G. In the words
// below: queries q meet values a of sources x.
//   warp     16 key channels of S in registers; per chunk, [query, key] being tokens:
//     between = q a^T                                                    all value channels, exact: each warp forms it anew
//     g = (q S^T) w^t + sum over levels (mask(between) (x w^(L-1 - s mod L))) w^(t mod L) + u x diag(between)
//   gu = sum r k diag(between);  dL / d ln w: every exponent times what it multiplies, three shares of it
//     of the query within its chunk and level      here, and backwards of the key: t r (q S^T) w^t, (t mod L) ..
//     of whole chunks between the two               forwards, by D = dS / d ln w as far as they carry it:
//                                                   D <- w^n (D + n S), share r (q D^T) w^t, at the very end D . g_final
//   No exponent is negative, so that nothing cancels that does not in the exact sum.
//   gv       backwards, warps leave each other in shared memory: G rounded as y's S is, k w^(n-1-s), shares of the scores
//            A[s,t] = sum_i k w^(t-1-s) r; then, 16 value channels a warp, gv = (k w^(n-1-s)) G + A gy
// precision  q, a exact; S, D, between and scaled x in two parts of bf16, 2^-16; sums fp32: what comes in float32 (gu, dL/dw,
//            states) is that good, gr and gk are rounded once. Rounded once more before (as y is), dL/dw would lose 1e-3
#pragma once

#include "scores.cuh"
#include "states.cuh"

namespace tkpy::wkv5 {

// Powers of a source in a transposed tile [channel x token], at the levels below 8: of rows g and g + 8, columns e % 2.
struct SourcePowers {
  float near[2], mid[2][2];  // level 2: w^1; 4: w^(3 - t mod 4), backwards w^(t mod 4)

  TK_DEVICE SourcePowers(const float* rate, bool backwards) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float of = rate[tile_row(2 * h)];
      near[h] = power(of, 1);
#pragma unroll
      for (int e = 0; e < 2; ++e) mid[h][e] = power(of, backwards ? tile_col(e) % 4 : 3 - tile_col(e) % 4);
    }
  }
};

template <class T, int N>
struct Keys {
  static constexpr int warps = N / 16, raw = raw_parts<T>;
  enum { kX, kA, kQ, kOther };
  using Chunk = Slot<T, N, 4>;
  // What warps leave each other of a chunk, for gv.
  struct Passed {
    st<bf16, N, N> state[raw];
    st<bf16, kChunk, N> query[raw];
    Shares<warps> scores;
  };
  // What a lane sums, of its four key channels: dL / d ln w and gu; over time, where registers are full of states, in
  // shared memory.
  struct Sums {
    float x[8];
  };
  static constexpr bool kept_apart = N == 128;
  struct Shared {
    Chunk slots[kStages];
    Passed passed;
    Rates<N> of;
    float sums[8][32 * warps], end[N];  // of lanes; D . g_final
    st<T, 16, 16> scratch[warps];
    channel<kStages> filled;
    Task task;  // for the end: registers are full in between
  };
  static_assert(sizeof(Shared) == kShared[shape_of(N)].backward[raw - 1], "what the launcher asks for must be the truth");

  const Params& p;
  Shared& shared;
  const int warp = warp_index(), mine = 16 * warp;  // the first of this warp's key channels
  const bool backwards;
  const float* rate;  // of them
  KeyRows<T, N> rows{rate, backwards};
  Tile spread[N / 16];                           // D
  const RowPowers power_of{rate, !backwards};    // of queries
  const SourcePowers source_power{rate, backwards};
  const Meeting meet{backwards};
  Sums total{};

  TK_DEVICE Keys(const Params& p_, Shared& shared_)
      : p(p_), shared(shared_), backwards(p.backwards != 0), rate(shared.of.rate + mine) {}

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int slot = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
    Task task;
    if (!find(task, p, slot)) return;
    shared.of.begin(p, head);
    if (threadIdx.x == 0) shared.task = task;
    __syncthreads();
    Keys work(p, shared);
    work.begin(task, slot, head);
    work.sweep(task, head);
    work.end(shared.task, slot, head);
  }

 private:
  TK_DEVICE Stage<N>& stage() const {
    static_assert(sizeof(Stage<N>) <= offsetof(Shared, of), "a state must fit where chunks are");
    return reinterpret_cast<Stage<N>&>(shared);
  }

  TK_DEVICE void begin(const Task& task, int slot, int head) {
    const float* states = backwards ? p.g_states : p.states;
    const float* given = backwards ? p.g_final : p.initial;
    stage().read(rows.state, states  ? states + matrix_at(p, slot, head)
                             : given ? given + matrix_at(p, task.sequence, head) : nullptr, p.size, mine);
    stage().read(spread, backwards || !p.spread ? nullptr : p.spread + matrix_at(p, slot, head), p.size, mine);
    if constexpr (kept_apart) keep(total);
  }
  TK_DEVICE void keep(const Sums& sums) {
#pragma unroll
    for (int i = 0; i < 8; ++i) shared.sums[i][threadIdx.x] = sums.x[i];
  }

  // All chunks of the segment.
  TK_DEVICE void sweep(const Task& task, int head) {
    Feed<T, N, 4> feed{shared.slots, &shared.filled, p, {kK, kV, kGy, kR}, task, head, backwards};
    feed.begin(warps);
#pragma unroll 1
    for (int step = 1 - kStages; step < task.chunks(); ++step) {
      if (warp == 0) feed.fill();
      if (step < 0) continue;
      const ring<kStages> at = place_of(step);
      await(shared.filled, at);
      Chunk& chunk = shared.slots[at.slot];
      feed.clean(chunk, feed.tokens(step));
      rows.prepare(feed.tokens(step));
      Tile out;
      if (backwards) {
        __syncthreads();  // what was passed of the chunk before has been read
        pass(chunk);
        __syncthreads();
        meet_passed(out, chunk);
        write_rows(p.gv, p, feed, step, mine, out, shared.scratch[warp]);
      }
      gradient(out, chunk, feed.tokens(step));
      if (!backwards) rows.carry(spread);
      rows.step(chunk.x[kX], chunk.x[kA], mine);
      __syncwarp();
      release(shared.filled, at);
      write_rows(backwards ? p.gk : p.gr, p, feed, step, mine, out, shared.scratch[warp]);
    }
  }

  // For gv, to the other warps: this one's rows of G, k w^(n-1-s), its share of the scores.
  TK_DEVICE void pass(const Chunk& chunk) {
    rt<T, 16, 16> k_raw, r_raw;
    load(k_raw, chunk.x[kOther], 0, mine);
    load(r_raw, chunk.x[kX], 0, mine);
    Tile scores, k, r;
    copy(k, k_raw);
    copy(r, r_raw);
    score(scores, k, r, k_raw, r_raw, power_of, RowPowers(rate, true), meet, shared.of.u + mine);
    shared.passed.scores.leave(scores, warp);
#pragma unroll
    for (int e = 0; e < 8; ++e) k.x[0][e] *= power_of.whole(e);
    leave(shared.passed.query, k, warp);
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      Parts<raw> state;
      split(state, rows.state[c]);
#pragma unroll
      for (int i = 0; i < raw; ++i) store(shared.passed.state[i], state.part[i], mine, 16 * c);
    }
  }
  // gv: 16 value channels.
  TK_DEVICE void meet_passed(Tile& out, const Chunk& chunk) {
    rt<T, 16, 16> gy;
    load_transposed(gy, chunk.x[kA], 0, mine);
    Parts<raw> values, scores;
    split(values, gy);
    shared.passed.scores.add_up(scores);
    zero(out);
    multiply(out, scores, values);
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      Parts<raw> query, state;
#pragma unroll
      for (int i = 0; i < raw; ++i) {
        load(query.part[i], shared.passed.query[i], 0, 16 * c);
        load_transposed(state.part[i], shared.passed.state[i], 16 * c, mine);
      }
      multiply(out, query, state);
    }
  }

  TK_DEVICE void gradient(Tile& out, const Chunk& chunk, int n) {
    Tile between, from, carried, x, other;
    read(between, from, carried, chunk);
    rt<T, 16, 16> data;
    load(data, chunk.x[kX], 0, mine);
    copy(x, data);
    load(data, chunk.x[kOther], 0, mine);
    copy(other, data);
    const int g = lane_index() / 4, holder = (lane_index() & 28) | (g / 2 % 4);  // who has the diagonal's element
    const float own[2] = {__shfl_sync(0xffffffffu, g % 2 ? between.x[0][1] : between.x[0][0], holder),
                          __shfl_sync(0xffffffffu, g % 2 ? between.x[0][7] : between.x[0][6], holder)};
    Sums sums{};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int q = channel_of(e), at = tile_col(e);
      const int exponent = backwards ? kChunk - 1 - tile_row(e) : max(tile_row(e) - (kChunk - n), 0);
      const float weight = backwards || n == kChunk ? power_of.whole(e) : power(rate[at], exponent), self = own[e / 2 % 2];
      const float along = fmaf(static_cast<float>(exponent), from.x[0][e], carried.x[0][e]);
      sums.x[q] = fmaf(other.x[0][e] * weight, along, sums.x[q]);
      sums.x[4 + q] = fmaf(self * other.x[0][e], x.x[0][e], sums.x[4 + q]);
      out.x[0][e] = fmaf(weight, from.x[0][e], self * shared.of.u[mine + at] * x.x[0][e]);
    }
    within(out, sums, between, other, chunk);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& all = kept_apart ? shared.sums[i][threadIdx.x] : total.x[i];
      all += sums.x[i];
    }
  }

  // q a^T, q S^T and, forwards, q D^T: over all value channels.
  TK_DEVICE void read(Tile& between, Tile& from, Tile& carried, const Chunk& chunk) const {
    zero(between);
    zero(from);
    zero(carried);
    rt<T, 16, 16> data, values;
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      load(data, chunk.x[kQ], 0, 16 * c);
      load(values, chunk.x[kA], 0, 16 * c);
      mma_ABt(between, data, values);
    }
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {  // once more: registers are full of states
      Parts<raw> query;
      Parts<2> state;
      load(data, chunk.x[kQ], 0, 16 * c);
      split(query, data);
      split(state, rows.state[c]);
      multiply(from, query, state);
      if (!backwards) {
        split(state, spread[c]);
        multiply(carried, query, state);
      }
    }
  }

  // What comes from other tokens of the chunk, level by level.
  TK_DEVICE void within(Tile& out, Sums& sums, const Tile& between, const Tile& other, const Chunk& chunk) const {
    Parts<2> met;
    split(met, between);
    rt<T, 16, 16> source;
    load_transposed(source, chunk.x[kX], 0, mine);
    Tile wide;
    copy(wide, source);
#pragma unroll
    for (int l = -1; l < 3; ++l) {
      const int level = 1 << (l + 1);
      Parts<2> here;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const u32 mask = (meet(2 * w, level) ? 0xffffu : 0u) | (meet(2 * w + 1, level) ? 0xffff0000u : 0u);
#pragma unroll
        for (int i = 0; i < 2; ++i) here.part[i].x[0][w] = met.part[i].x[0][w] & mask;
      }
      Tile through;
      zero(through);
      if (l < 0) {  // neighbours: no decay between them
        Parts<raw> exact;
        split(exact, source);
        multiply(through, here, exact);
        add(out, out, through);
        continue;
      }
      Tile scaled;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int h = e / 2 % 2;
        const float weight = l == 0   ? (e % 2 != 0) != backwards ? 1.0f : source_power.near[h]
                             : l == 1 ? source_power.mid[h][e % 2] : rows.last[h][e % 2];
        scaled.x[0][e] = wide.x[0][e] * weight;
      }
      Parts<2> parts;
      split(parts, scaled);
      multiply(through, here, parts);
      const int place = lane_index() / 4 % level;
      const float exponent = static_cast<float>(backwards ? level - 1 - place : place);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float share = power_of.scale(through.x[0][e], l, e);
        out.x[0][e] += share;
        sums.x[channel_of(e)] = fmaf(exponent * other.x[0][e], share, sums.x[channel_of(e)]);
      }
    }
  }

  // This segment's shares of gu and dL / d ln w; where G has come to.
  TK_DEVICE void end(const Task& task, int slot, int head) {
    const long long sequence = matrix_at(p, task.sequence, head);
    const bool ends = !backwards && p.g_final && task.last();
    if (ends) meet_end(p.g_final + sequence);
    if constexpr (!kept_apart) keep(total);
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x) % N, which = static_cast<int>(threadIdx.x) / N;
    const int at = i % 16;  // channel i: of 8 lanes of a warp, one below the other
    const float* sums = shared.sums[4 * which + 2 * (at / 8) + at % 2] + 32 * (i / 16) + at % 8 / 2;
    float sum = 0.0f;
    for (int lane = 0; lane < 32; lane += 4) sum += sums[lane];
    if (i < p.size) {
      const long long to = (static_cast<long long>(slot) * p.heads + head) * p.size + i;
      if (which == 0)
        (backwards ? p.g_log_w[1] : p.g_log_w[0])[to] = ends ? sum + shared.end[i] : sum;
      else if (!backwards)
        p.g_u[to] = sum;
    }
    if (backwards && p.g_initial && task.segment == 0) stage().write(p.g_initial + sequence, rows.state, p.size, mine);
  }
  // D . g_final, by rows.
  TK_DEVICE void meet_end(const float* g_final) {
    stage().read(rows.state, g_final, p.size, mine);  // S is not needed any more
    float sum[2] = {};
#pragma unroll
    for (int c = 0; c < N / 16; ++c)
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e / 2 % 2] += spread[c].x[0][e] * rows.state[c].x[0][e];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
      if (lane_index() % 4 == 0) shared.end[mine + tile_row(2 * h)] = sum[h];
    }
  }
};

}  // namespace tkpy::wkv5
