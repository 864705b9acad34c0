// The state of a segment alone, S <- diag(w) S + k_t v_t^T from zero (backwards: G <- diag(w) G + r_t gy_t^T), and what
// becomes of it over the segments of a sequence: two small kernels, where one CTA a sequence and head would leave most of
// the GPU idle. A warp has 16 key channels of S and all value channels.
#pragma once

#include "chunk.cuh"

namespace tkpy::wkv5 {

// 16 key channels (rows) of S.
template <class T, int N>
struct KeyRows {
  static constexpr int raw = raw_parts<T>;
  const float* rate;  // of the 16 channels
  const bool backwards;
  // Of rows g and g + 8: w^(7 - t mod 8), backwards w^(t mod 8), for the tokens t of columns e % 2; w^8; w^n - 1.
  float last[2][2], eight[2], fade[2];
  int length = 0;  // n, for which `fade` is

  Tile state[N / 16];

  TK_DEVICE KeyRows(const float* rate_, bool backwards_) : rate(rate_), backwards(backwards_) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float of = rate[tile_row(2 * h)];
      eight[h] = power(of, 8);
#pragma unroll
      for (int e = 0; e < 2; ++e) last[h][e] = power(of, backwards ? tile_col(e) : 7 - tile_col(e));
    }
  }
  TK_DEVICE void prepare(int n) {
    if (n == length) return;
    length = n;
#pragma unroll
    for (int h = 0; h < 2; ++h) fade[h] = fade_of(rate[tile_row(2 * h)], n);
  }
  // x, [channel x token], times w^(15 - t), backwards w^t, t counted from the first token on.
  TK_DEVICE void weigh(Tile& x) const {
    if (backwards && length < kChunk) {
#pragma unroll
      for (int e = 0; e < 8; ++e) x.x[0][e] *= power(rate[tile_row(e)], max(tile_col(e) - (kChunk - length), 0));
      return;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int h = e / 2 % 2;
      const float near = x.x[0][e] * last[h][e % 2];
      x.x[0][e] = (e / 4 != 0) == backwards ? near * eight[h] : near;
    }
  }
  // S <- w^n S + (x w^..)^T a; x and a are tiles [tokens x channels] of a slot.
  template <class Shared>
  TK_DEVICE void step(const Shared& x, const Shared& a, int channel) {
    rt<T, 16, 16> x_raw;
    load_transposed(x_raw, x, 0, channel);
    Tile wide;
    copy(wide, x_raw);
    weigh(wide);
    Parts<2> key;
    split(key, wide);
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      rt<T, 16, 16> a_raw;
      load_transposed(a_raw, a, 0, 16 * c);
      Parts<raw> value;
      split(value, a_raw);
      decay(state[c]);
      multiply(state[c], key, value);
    }
  }
  // What passes a chunk of n tokens is decayed n times more: D <- w^n (D + n S), before S goes on.
  TK_DEVICE void carry(Tile (&spread)[N / 16]) const {
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
#pragma unroll
      for (int e = 0; e < 8; ++e) spread[c].x[0][e] += static_cast<float>(length) * state[c].x[0][e];
      decay(spread[c]);
    }
  }
  TK_DEVICE void decay(Tile& x) const {
#pragma unroll
    for (int e = 0; e < 8; ++e) x.x[0][e] = fmaf(x.x[0][e], fade[e / 2 % 2], x.x[0][e]);
  }
};

template <class T, int N>
struct States {
  static constexpr int warps = N / 16;
  struct Shared {
    Slot<T, N, 2> slots[kStages];
    channel<kStages> filled;
    Rates<N> of;
    Stage<N> stage;
  };
  static_assert(sizeof(Shared) == kShared[shape_of(N)].states, "what the launcher asks for must be the truth");

  // The tensors are k and v, backwards r and gy; `spread` where it is wanted.
  TK_DEVICE static void run(const Params& p) {
    const bool backwards = p.backwards != 0;
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int slot = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), warp = warp_index();
    Task task;
    if (!find(task, p, slot)) return;
    Feed<T, N, 2> feed{shared.slots, &shared.filled, p, {kK, kV}, task, head, backwards};
    shared.of.begin(p, head);
    feed.begin(warps);
    KeyRows<T, N> rows(shared.of.rate + 16 * warp, backwards);
    const bool spreads = !backwards && p.spread != nullptr;
    Tile spread[N / 16];
#pragma unroll
    for (int c = 0; c < N / 16; ++c) {
      zero(rows.state[c]);
      zero(spread[c]);
    }
#pragma unroll 1
    for (int step = 1 - kStages; step < task.chunks(); ++step) {
      if (warp == 0) feed.fill();
      if (step < 0) continue;
      const ring<kStages> at = place_of(step);
      await(shared.filled, at);
      const int n = feed.tokens(step);
      feed.clean(shared.slots[at.slot], n);
      rows.prepare(n);
      if (spreads) rows.carry(spread);
      rows.step(shared.slots[at.slot].x[0], shared.slots[at.slot].x[1], 16 * warp);
      __syncwarp();
      release(shared.filled, at);
    }
    shared.stage.write((backwards ? p.g_states : p.states) + matrix_at(p, slot, head), rows.state, p.size, 16 * warp);
    if (spreads) shared.stage.write(p.spread + matrix_at(p, slot, head), spread, p.size, 16 * warp);
  }
};

// States of segments alone become those at their starts (backwards: gradients at their ends), in their order. One thread
// an element; at most as many steps as a sequence has segments.
TK_DEVICE void join(const Params& p) {
  const bool backwards = p.backwards != 0;
  const int sequence = static_cast<int>(blockIdx.y) / p.heads, head = static_cast<int>(blockIdx.y) % p.heads;
  const int element = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), all = p.size * p.size;
  if (element >= all) return;
  const float rate = rate_of(p, head, element / p.size), fade = fade_of(rate, p.segment);
  const float* given = backwards ? p.g_final : p.initial;
  float* states = backwards ? p.g_states : p.states;
  float state = given ? given[(static_cast<long long>(sequence) * p.heads + head) * all + element] : 0.0f, spread = 0.0f;
  const int count = segments_of(p, sequence), first = first_slot(p, sequence);
  const int tail = tokens_of(p, sequence) - (count - 1) * p.segment;
  for (int i = 0; i < count; ++i) {
    const int segment = backwards ? count - 1 - i : i;
    const long long at = (static_cast<long long>(first + segment) * p.heads + head) * all + element;
    const float alone = states[at], kept = segment == count - 1 ? fade_of(rate, tail) : fade;
    states[at] = state;
    if (!backwards && p.spread) {
      const float alone_spread = p.spread[at], sum = spread + static_cast<float>(p.segment) * state;
      p.spread[at] = spread;
      spread = fmaf(sum, kept, sum) + alone_spread;
    }
    state = fmaf(state, kept, state) + alone;
  }
}

}  // namespace tkpy::wkv5
