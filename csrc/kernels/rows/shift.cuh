// What both directions of token_shift have: a thread's place, and its mixes.
#pragma once

#include "rows.cuh"
#include "shift_params.h"

namespace tkpy::rows {

// A chunk of 16 bytes of channels, for a run of tokens: one thread's. A CTA has 2^lane_bits chunks side by side, of as many
// runs as its threads allow.
template <class T>
struct ShiftRun {
  static constexpr int N = chunk_width<T>;
  const ShiftParams& p;
  unsigned lane, team, row;  // chunk within the CTA, run within the CTA, run of all
  int col, first, end;  // channels from col, tokens first .. end - 1
  long long batch;

  TK_DEVICE explicit ShiftRun(const ShiftParams& params)
      : p(params), lane(threadIdx.x & ((1u << p.lane_bits) - 1)), team(threadIdx.x >> p.lane_bits),
        row(blockIdx.x / p.across * teams() + team) {
    col = static_cast<int>((blockIdx.x % p.across << p.lane_bits) + lane) * N;
    batch = row / p.runs;
    first = static_cast<int>(row % p.runs) * p.tokens;
    end = min(first + p.tokens, p.length);
  }

  TK_DEVICE unsigned teams() const { return static_cast<unsigned>(kShiftThreads) >> p.lane_bits; }
  TK_DEVICE bool exists() const { return row < p.rows && col < p.channels; }

  // x of a token; that of token -1 is `last`, or 0, and so are those before `from`.
  TK_DEVICE void load(raw<T, N>& x, int token, int from) const {
    const T* row = static_cast<const T*>(p.x) + batch * p.x_batch + token * p.x_token;
    bool there = token >= max(from, 0) && token < end;
    if (token == -1 && from < 0 && p.last != nullptr) {
      row = static_cast<const T*>(p.last) + batch * p.last_batch;
      there = true;
    }
    x.load(row, col, there ? p.channels : 0, p.grain);
  }
  TK_DEVICE void mixes(float (&w)[N], int m) const {
    const long long at = static_cast<long long>(m) * p.channels;
    if (p.mix.kind == kF32) {
      raw<float, N> bits;
      bits.load(static_cast<const float*>(p.mix.data) + at, col, p.channels, p.mix_grain);
      bits.get(w);
    } else {
      raw<T, N> bits;
      bits.load(static_cast<const T*>(p.mix.data) + at, col, p.channels, p.mix_grain);
      bits.get(w);
    }
  }
  // Row `token` of y[m].
  TK_DEVICE T* output(int m, int token) const {
    return static_cast<T*>(p.y) + m * p.plane + (batch * p.length + token) * p.channels;
  }
};

}  // namespace tkpy::rows
