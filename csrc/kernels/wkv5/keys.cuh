// Sums over value channels: gr_t = S_{t-1} gy_t + u k_t (v_t . gy_t), S carried as in the forward; backwards, with r and k, v
// and gy exchanged, gk_s = G_s v_s + u r_s (v_s . gy_s). In the words below: queries q meet values a of sources x.
//   warp     on its own, 16 key channels of S in registers; per chunk, [query, key] being tokens:
//     between = q a^T                                                    all value channels, exact: each warp forms it anew
//     g = (q S^T) w^t + sum over levels (mask(between) (x w^(L-1 - s mod L))) w^(t mod L) + u x diag(between)
//   gu = sum r k diag(between);  dL / d ln w: every exponent times what it multiplies, three shares of it
//     of the query within its chunk and level      here, and backwards of the key: t r (q S^T) w^t, (t mod L) ..
//     of whole chunks between the two               forwards, by D = dS / d ln w as far as they carry it:
//                                                   D <- w^n (D + n S), share r (q D^T) w^t, at the very end D . g_final
//   No exponent is negative, so that nothing cancels that does not in the exact sum.
// precision  q, a exact; S, D, between and scaled x in two parts of bf16, 2^-16; sums fp32: what comes in float32 (gu, dL/dw,
//            states) is that good, gr and gk are rounded once. Rounded once more before (as y is), dL/dw would lose 1e-3
#pragma once

#include "outputs.cuh"
#include "states.cuh"

namespace tkpy::wkv5 {

// Powers of a source in a transposed tile [channel x token], at the levels below 8: of rows g and g + 8, columns e % 2.
struct SourcePowers {
  float near[2], mid[2][2];  // level 2: w^1; 4: w^(3 - t mod 4), backwards w^(t mod 4)

  TK_DEVICE SourcePowers(const Params& p, int head, int channel, bool backwards) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float rate = rate_of(p, head, channel + tile_row(2 * h));
      near[h] = power(rate, 1);
#pragma unroll
      for (int e = 0; e < 2; ++e) mid[h][e] = power(rate, backwards ? tile_col(e) % 4 : 3 - tile_col(e) % 4);
    }
  }
};

template <class T, int N, bool Backwards>
struct Keys {
  static constexpr int warps = N / 16, raw = raw_parts<T>;
  enum { kX, kA, kQ, kOther };
  using Chunk = Slot<T, N, 4>;
  // What a lane sums over time, of its four key channels; where registers are full of states, in shared memory.
  struct Sums {
    float log_w[4], u[4];
  };
  static constexpr bool kept_apart = !Backwards && N == 128;
  struct Shared {
    Chunk slots[kStages];
    st<T, 16, 16> scratch[warps];
    channel<kStages> filled;
    float rate[N], u[N];
    Sums sums[N == 128 ? 32 * warps : 1];
  };
  static_assert(sizeof(Shared) == kShared[shape_of(N)].keys, "what the launcher asks for must be the truth");

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int slot = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), warp = warp_index(), channel = 16 * warp;
    Task task;
    if (!find(task, p, slot)) return;
    const tensor_map *x = Backwards ? &p.r : &p.k, *other = Backwards ? &p.k : &p.r;
    const tensor_map *a = Backwards ? &p.gy : &p.v, *q = Backwards ? &p.v : &p.gy;
    Feed<T, N, 4> feed{shared.slots, &shared.filled, {x, a, q, other}, task, head, Backwards};
    for (int i = static_cast<int>(threadIdx.x); i < N; i += 32 * warps) {
      shared.rate[i] = rate_of(p, head, i);
      shared.u[i] = bonus_of(p, head, i);
    }
    KeyRows<T, N> rows(p, head, channel, Backwards);
    begin(rows, p, task, slot, head, channel);
    Tile spread[Backwards ? 1 : N / 16];
    if constexpr (!Backwards)
#pragma unroll
      for (int c = 0; c < N / 16; ++c) {
        zero(spread[c]);
        if (p.spread) read_state(spread[c], p.spread + matrix_at(p, slot, head), p, channel, 16 * c);
      }
    const Powers power_of(p, head, channel, Backwards);
    const SourcePowers source_power(p, head, channel, Backwards);
    Sums own;
    Sums& sums = kept_apart ? shared.sums[threadIdx.x] : own;
    sums = {};
    feed.begin(warps);
#pragma unroll 1
    for (int step = 0; step < task.chunks(); ++step) {
      const ring<kStages> at = place_of(step);
      if (warp == 0) feed.fill();
      await(shared.filled, at);
      const Chunk& chunk = shared.slots[at.slot];
      const int n = feed.tokens(step);
      rows.prepare(p, head, channel, n);
      Tile out;
      gradient(out, sums, shared, chunk, rows, spread, power_of, source_power, channel, n);
      if constexpr (!Backwards) rows.carry(spread);
      rows.step(chunk.x[kX], chunk.x[kA], p, head, channel, n);
      __syncwarp();
      release(shared.filled, at);
      write_rows(Backwards ? p.gk : p.gr, p, task, feed.first(step), n, head, channel, out, shared.scratch[warp]);
    }
    own = sums;
    leave(own, p, slot, head, channel);
    if constexpr (!Backwards)
      if (p.g_final && task.last()) meet_end(spread, p, task, slot, head, channel);
  }

 private:
  TK_DEVICE static void begin(KeyRows<T, N>& rows, const Params& p, const Task& task, int slot, int head, int channel) {
    const float* states = Backwards ? p.g_states : p.states;
    const float* given = Backwards ? p.g_final : p.initial;
    const float* from = states ? states + matrix_at(p, slot, head)
                        : given ? given + matrix_at(p, task.sequence, head) : nullptr;
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      zero(rows.state[c]);
      if (from) read_state(rows.state[c], from, p, channel, 16 * c);
    }
  }

  template <int Spreads>
  TK_DEVICE static void gradient(Tile& out, Sums& sums, const Shared& shared, const Chunk& chunk, const KeyRows<T, N>& rows,
                                 const Tile (&spread)[Spreads], const Powers& power_of, const SourcePowers& source_power,
                                 int channel, int n) {
    Tile between, from, carried, x, other;
    read(between, from, carried, chunk, rows, spread, n);
    rt<T, 16, 16> data;
    fetch(data, chunk.x[kX], channel, n);
    copy(x, data);
    fetch(data, chunk.x[kOther], channel, n);
    copy(other, data);
    const int g = lane_index() / 4, holder = (lane_index() & 28) | (g / 2 % 4);  // who has the diagonal's element
    const float own[2] = {__shfl_sync(0xffffffffu, g % 2 ? between.x[0][1] : between.x[0][0], holder),
                          __shfl_sync(0xffffffffu, g % 2 ? between.x[0][7] : between.x[0][6], holder)};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int q = Powers::channel_of(e), at = channel + tile_col(e);
      const int exponent = Backwards ? max(n - 1 - tile_row(e), 0) : tile_row(e);
      const float weight = !Backwards     ? power_of.read(e)
                           : n == kChunk ? power_of.write(e)
                                         : power(shared.rate[at], exponent);
      float along = static_cast<float>(exponent) * from.x[0][e];
      if constexpr (!Backwards) along += carried.x[0][e];
      sums.log_w[q] = fmaf(other.x[0][e] * weight, along, sums.log_w[q]);
      const float self = own[e / 2 % 2];
      if constexpr (!Backwards) sums.u[q] = fmaf(self * other.x[0][e], x.x[0][e], sums.u[q]);
      out.x[0][e] = fmaf(weight, from.x[0][e], self * shared.u[at] * x.x[0][e]);
    }
    within(out, sums, between, other, chunk, rows, power_of, source_power, channel, n);
  }

  // q a^T, q S^T and q D^T: over all value channels.
  template <int Spreads>
  TK_DEVICE static void read(Tile& between, Tile& from, Tile& carried, const Chunk& chunk, const KeyRows<T, N>& rows,
                             const Tile (&spread)[Spreads], int n) {
    zero(between);
    zero(from);
    zero(carried);
    rt<T, 16, 16> data;
    Parts<raw> query;
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      Parts<raw> value;
      fetch(data, chunk.x[kQ], 16 * c, n);
      split(query, data);
      fetch(data, chunk.x[kA], 16 * c, n);
      split(value, data);
      multiply(between, query, value);
    }
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {  // once more: registers are full of states
      Parts<2> state;
      fetch(data, chunk.x[kQ], 16 * c, n);
      split(query, data);
      split(state, rows.state[c]);
      multiply(from, query, state);
      if constexpr (!Backwards) {
        split(state, spread[c]);
        multiply(carried, query, state);
      }
    }
  }

  // What comes from other tokens of the chunk, level by level.
  TK_DEVICE static void within(Tile& out, Sums& sums, const Tile& between, const Tile& other, const Chunk& chunk,
                               const KeyRows<T, N>& rows, const Powers& power_of, const SourcePowers& source_power,
                               int channel, int n) {
    Parts<2> met;
    split(met, between);
    rt<T, 16, 16> source;
    fetch_transposed(source, chunk.x[kX], channel, n);
    Tile wide;
    copy(wide, source);
#pragma unroll
    for (int l = -1; l < 3; ++l) {
      const int level = 1 << (l + 1);
      Parts<2> here;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const u32 mask = (power_of.meet<Backwards>(2 * w, level) ? 0xffffu : 0u) |
                         (power_of.meet<Backwards>(2 * w + 1, level) ? 0xffff0000u : 0u);
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
        const float weight = l == 0 ? source_power.near[h] : l == 1 ? source_power.mid[h][e % 2] : rows.last[h][e % 2];
        scaled.x[0][e] = l == 0 && (e % 2 != 0) != Backwards ? wide.x[0][e] : wide.x[0][e] * weight;
      }
      Parts<2> parts;
      split(parts, scaled);
      multiply(through, here, parts);
      const int place = lane_index() / 4 % level, exponent = Backwards ? level - 1 - place : place;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int q = Powers::channel_of(e);
        const float share = Backwards ? power_of.earlier(through.x[0][e], l, e) : power_of.later(through.x[0][e], l, e);
        out.x[0][e] += share;
        sums.log_w[q] = fmaf(static_cast<float>(exponent) * other.x[0][e], share, sums.log_w[q]);
      }
    }
  }

  // Sums over the rows of all lanes, to this segment's share.
  TK_DEVICE static void leave(Sums& sums, const Params& p, int slot, int head, int channel) {
    const long long first = (static_cast<long long>(slot) * p.heads + head) * p.size;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        sums.log_w[q] += __shfl_xor_sync(0xffffffffu, sums.log_w[q], lanes);
        if constexpr (!Backwards) sums.u[q] += __shfl_xor_sync(0xffffffffu, sums.u[q], lanes);
      }
      const int at = channel + tile_col(q / 2 * 4 + q % 2);
      if (lane_index() < 4 && at < p.size) {
        p.g_log_w[Backwards][first + at] = sums.log_w[q];
        if constexpr (!Backwards) p.g_u[first + at] = sums.u[q];
      }
    }
    __syncwarp();  // meet_end adds to the share
  }
  // What comes through the final state: D . g_final, by rows.
  template <int Spreads>
  TK_DEVICE static void meet_end(const Tile (&spread)[Spreads], const Params& p, const Task& task, int slot, int head,
                                 int channel) {
    float sum[2] = {};
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      Tile given;
      read_state(given, p.g_final + matrix_at(p, task.sequence, head), p, channel, 16 * c);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e / 2 % 2] += spread[c].x[0][e] * given.x[0][e];
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
      const int at = channel + tile_row(2 * h);
      if (lane_index() % 4 == 0 && at < p.size)
        p.g_log_w[0][(static_cast<long long>(slot) * p.heads + head) * p.size + at] += sum[h];
    }
  }
};

}  // namespace tkpy::wkv5
