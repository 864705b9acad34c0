// What the kernels of short_conv have in common.
//   chunk    8 times of a channel, 16 bytes of a 16-bit type: what a thread has at once, as it came from memory. Chunks
//            begin where the output's address is a multiple of 16 bytes, whatever the length: each channel has its phase.
//            Chunks at the ends of a sequence, and of inputs that are aligned otherwise, move one element at a time
//   team     the threads of a warp that share a channel, chunk beside chunk. Neighbours in time are `step` lanes apart
//   run      the times that a team goes through; what it needs of others' it reads again
//   turned   x with neighbouring channels beside each other: a warp loads 64 times of 4 x 16 bytes of channels, turns
//            them in registers, and leaves them in shared memory channel by channel, two such blocks in turn
#pragma once

#include "kernels/rows/rows.cuh"
#include "params.h"

namespace tkpy::short_conv {

using namespace tk;
using rows::raw;
using f32 = float;  // as the names of kernels have it

template <class T>
using Chunk = raw<T, kTimes>;

template <class T>
TK_DEVICE u32 bits_of(const T* at) {
  if constexpr (is_16bit<T>)
    return at->bits;
  else
    return __float_as_uint(*at);
}
template <class T>
TK_DEVICE void set_bits(T* at, u32 bits) {
  if constexpr (is_16bit<T>)
    at->bits = static_cast<unsigned short>(bits);
  else
    *at = __uint_as_float(bits);
}
// The first element leaves, `bits` becomes the last.
template <class T, int N>
TK_DEVICE void push(raw<T, N>& c, u32 bits) {
#pragma unroll
  for (int w = 0; w < c.words; ++w) {
    const u32 next = w + 1 < c.words ? c.word[w + 1] : bits;
    c.word[w] = is_16bit<T> ? __funnelshift_r(c.word[w], next, 16) : next;
  }
}
// Times t .. t + 7 of a row, 0 outside lo .. hi - 1.
template <class T>
TK_DEVICE void fetch(Chunk<T>& c, const T* row, int t, int lo, int hi, bool aligned) {
  if (aligned && t >= lo && t + kTimes <= hi) {
    c.load(row, t, t + kTimes, 16);
    return;
  }
  c.clear();
  if (t >= hi || t + kTimes <= lo) return;
#pragma unroll 1
  for (int i = t; i < t + kTimes; ++i) push(c, i >= lo && i < hi ? bits_of(row + i) : 0u);
}
template <class T>
TK_DEVICE void put(Chunk<T> c, T* row, int t, int lo, int hi, bool aligned) {
  if (aligned && t >= lo && t + kTimes <= hi) {
    c.store(row, t, t + kTimes, 16);
    return;
  }
  if (t >= hi || t + kTimes <= lo) return;
#pragma unroll 1
  for (int i = t; i < t + kTimes; ++i) {
    if (i >= lo && i < hi) set_bits(row + i, c.word[0]);
    push(c, 0u);
  }
}
template <class T>
TK_DEVICE bool aligned_at(const T* at) {
  return reinterpret_cast<unsigned long long>(at) % 16 == 0;
}
template <class T>
TK_DEVICE T* row_of(const Signal& s, long long batch, int channel) {
  return static_cast<T*>(s.data) + batch * s.batch + channel * s.channel;
}

struct Taps {
  float w[kMostTaps], bias;  // w[lag] multiplies x[t - lag]
};
template <class T>
TK_DEVICE void load_taps(Taps& taps, const Params& p, int channel) {
#pragma unroll
  for (int lag = 0; lag < kMostTaps; ++lag) {
    const long long at = static_cast<long long>(channel) * p.taps + p.taps - 1 - lag;
    taps.w[lag] = 0.0f;
    if (lag >= p.taps || channel >= p.channels) continue;
    taps.w[lag] = p.weight.kind == rows::kF32 ? static_cast<const float*>(p.weight.data)[at]
                                              : read(static_cast<const T*>(p.weight.data) + at);
  }
  float bias[1];
  rows::parameters<T, 1>(bias, p.bias, channel, p.channels, 0.0f);
  taps.bias = bias[0];
}

// Threads that share a channel; `time` is a thread's place among them.
struct Team {
  int step, width, time, count;

  TK_DEVICE Team(int lane_step, int lane_width) : step(lane_step), width(lane_width), time(0), count(lane_width / lane_step) {
    time = lane_index() % width / step;
  }
  template <class V>
  TK_DEVICE V before(V v) const {
    return __shfl_sync(0xffffffffu, v, static_cast<int>(lane_index()) + width - step, width);
  }
  template <class V>
  TK_DEVICE V after(V v) const {
    return __shfl_sync(0xffffffffu, v, static_cast<int>(lane_index()) + step, width);
  }
  TK_DEVICE float sum(float v) const {
#pragma unroll
    for (int s = 16; s > 0; s /= 2)
      if (s >= step && s < width) v += __shfl_xor_sync(0xffffffffu, v, s);
    return v;
  }
};

// A warp's run of a row, and the part of a sequence in it that it is at.
template <class T>
struct Part {
  const Params& p;
  int carried;                // samples of a state
  int group, batch, run;
  int sequence, start, stop;  // its number, its first time and the one after its last
  int from, to;               // times that are the warp's to write; `carried` of them before `start` are a state's

  TK_DEVICE explicit Part(const Params& params) : p(params), carried(params.taps - 1) {
    const unsigned warp = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
    group = static_cast<int>(warp % p.groups);
    run = static_cast<int>(warp / p.groups % p.runs);
    batch = static_cast<int>(warp / p.groups / p.runs);
  }
  // Where a sequence begins, whatever the offsets are.
  TK_DEVICE int bound(int i) const { return min(max(p.bounds[i], 0), p.length); }
  // The first sequence that ends at the run's begin or after it.
  TK_DEVICE int first_sequence() const {
    if (p.bounds == nullptr) return batch;
    int low = 0, high = p.sequences;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (bound(middle + 1) < run * p.tokens)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
  // Goes to a part; false after the last one. Empty sequences at the row's end are the last run's.
  TK_DEVICE bool enter(int number) {
    const int first = run * p.tokens, end = min(first + p.tokens, p.length);
    if (batch >= p.batches || number >= (p.bounds == nullptr ? batch + 1 : p.sequences)) return false;
    sequence = number;
    start = p.bounds == nullptr ? 0 : bound(number);
    stop = p.bounds == nullptr ? p.length : max(bound(number + 1), start);
    from = max(start, first);
    to = min(stop, end);
    return start < end || end == p.length;
  }
  // The state before the sequence is this run's to write, too: a whole chunk, so that phases stay.
  TK_DEVICE void include_state() {
    if (start >= run * p.tokens) from = start - kTimes;
  }
  // How many samples before `from` the chunks of a channel begin whose output is `row`.
  TK_DEVICE int phase(const T* row) const {
    return static_cast<int>(reinterpret_cast<unsigned long long>(row + from) / sizeof(T) % kTimes);
  }
  // The samples of the initial state among times t .. t + 7 of x.
  TK_DEVICE void add_state(Chunk<T>& c, int t, int channel) const {
    if (p.initial.data == nullptr || t >= start || t + kTimes <= start - carried || channel >= p.channels) return;
    const T* state = row_of<T>(p.initial, sequence, channel);
#pragma unroll 1
    for (int i = t - (start - carried); i < t - (start - carried) + kTimes; ++i)
      push(c, i >= 0 && i < carried ? bits_of(state + i * p.initial.time) : c.word[0]);
  }
  // The row of a contiguous state whose first sample is that of time `first`, as if it began at time 0.
  TK_DEVICE T* state_row(void* states, int channel, int first) const {
    return static_cast<T*>(states) + (static_cast<long long>(sequence) * p.channels + channel) * carried - first;
  }
};

// x[8 + i] is x of time i of the chunk `here`.
template <class T>
TK_DEVICE void window(float (&x)[2 * kTimes], const Chunk<T>& before, const Chunk<T>& here) {
  float a[kTimes], b[kTimes];
  before.get(a);
  here.get(b);
#pragma unroll
  for (int i = 0; i < kTimes; ++i) {
    x[i] = a[i];
    x[kTimes + i] = b[i];
  }
}
TK_DEVICE void convolve(float (&z)[kTimes], const float (&x)[2 * kTimes], const Taps& taps, int count) {
#pragma unroll
  for (int i = 0; i < kTimes; ++i) z[i] = taps.bias;
#pragma unroll
  for (int lag = 0; lag < kMostTaps; ++lag) {
    if (lag >= count) break;  // not a product with 0: what lies there may be no number
#pragma unroll
    for (int i = 0; i < kTimes; ++i) z[i] = fmaf(taps.w[lag], x[kTimes + i - lag], z[i]);
  }
}

}  // namespace tkpy::short_conv
