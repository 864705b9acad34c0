// x with neighbouring channels beside each other, turned: a warp's two blocks of 64 times of 4 x 16 bytes of channels in
// shared memory, channel by channel. Chunk q of a channel has times from + 8 q on and lies in slot q % 16; slots are
// swizzled so that 8 lanes that read or write together never meet in a bank.
#pragma once

#include "conv.cuh"

namespace tkpy::short_conv {

template <class T>
struct Turned {
  static constexpr int R = 16 / static_cast<int>(sizeof(T));  // channels of a lane
  static constexpr int kSlots = 2 * kTimeLanes, kChunkBytes = kTimes * static_cast<int>(sizeof(T));
  static constexpr int kSamples = kTurnLanes * R * kSlots * kChunkBytes;
  const Part<T>& part;
  unsigned char* shared;  // this warp's
  int beside, time;       // this lane's place among channels and times
  raw<T, R> line[kTimes]; // of the block that is on its way

  TK_DEVICE Turned(const Part<T>& of, unsigned char* memory)
      : part(of), shared(memory), beside(lane_index() % kTurnLanes), time(lane_index() / kTurnLanes) {}

  // Blocks of the run; an early row's last chunk begins before the run's end and ends after it.
  TK_DEVICE int blocks() const { return (part.to - part.from + (part.p.shifted ? kTimes - 1 : 0) + kBlock - 1) / kBlock; }
  TK_DEVICE int channel(int i) const { return (part.group * kTurnLanes + beside) * R + i; }
  // Floats of the lane's channel i: taps, bias, gradients.
  TK_DEVICE float* row(int i) const {
    return reinterpret_cast<float*>(shared + kSamples) + (beside * R + i) * kRowFloats + 4 * beside;
  }
  // The 32 sums of a warp that sum `which` of channel i has.
  TK_DEVICE float* sum(int which, int i) const {
    return reinterpret_cast<float*>(shared + kSamples) + kTurnLanes * R * kRowFloats + 4 * kTurnLanes + (which * R + i) * 32 +
           lane_index();
  }
  TK_DEVICE u32 address(int i, int chunk, int half) const {
    const int slot = (chunk & (kSlots - 1)) ^ (2 * beside);
    return ptx::shared_address(shared) + static_cast<u32>(((beside * R + i) * kSlots + slot) * kChunkBytes +
                                                          (kChunkBytes == 32 ? half ^ (beside >> 1) : half) * 16);
  }

  // Rows of the warp's channels; there from the first receive() on.
  TK_DEVICE void load_parameters() const {
    for (int i = time; i < R; i += kTimeLanes) {
      Taps taps;
      load_taps<T>(taps, part.p, channel(i));
      float v[kRowFloats] = {};
#pragma unroll
      for (int lag = 0; lag < kMostTaps; ++lag) v[lag] = taps.w[lag];
      v[kMostTaps] = taps.bias;
#pragma unroll
      for (int k = 0; k < kRowFloats; k += 4)
        ptx::st_shared_v4(ptx::shared_address(row(i) + k), make_uint4(__float_as_uint(v[k]), __float_as_uint(v[k + 1]),
                                                                      __float_as_uint(v[k + 2]), __float_as_uint(v[k + 3])));
    }
  }
  TK_DEVICE void get_taps(Taps& taps, int i) const {
    const u32 at = ptx::shared_address(row(i));
    const uint4 a = ptx::ld_shared_v4(at), b = ptx::ld_shared_v4(at + 16);
    const u32 bits[kMostTaps] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int lag = 0; lag < kMostTaps; ++lag) taps.w[lag] = __uint_as_float(bits[lag]);
    taps.bias = ptx::ld_shared(at + 4 * kMostTaps);
  }

  // 16 bytes of channels of a time.
  TK_DEVICE void load(raw<T, R>& c, const T* x, bool there) const {
    if (part.p.grain == 16) {
      c.load(x, channel(0), there ? part.p.channels : 0, 16);
      return;
    }
    c.clear();
    if (!there) return;
#pragma unroll 1
    for (int i = 0; i < R; ++i) push(c, channel(i) < part.p.channels ? bits_of(x + channel(i)) : 0u);
  }
  // Sends for block `block`: times before `end`. Of the block before the run a window needs the last chunk only.
  TK_DEVICE void send(int block, int end) {
    const Params& p = part.p;
    const T* x = row_of<T>(p.x, part.batch, 0);
    const int first = part.from + block * kBlock + time * kTimes;
#pragma unroll
    for (int k = 0; k < kTimes; ++k) {
      const int t = first + k;
      const bool there = t >= part.start && t < end && time >= (block < 0 ? kTimeLanes - 1 : 0);
      load(line[k], x + t * p.x.time, there);
    }
  }
  // What was sent for, turned.
  TK_DEVICE void receive(int block) const {
    const int chunk = block * kTimeLanes + time, t = part.from + chunk * kTimes;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      Chunk<T> c;
#pragma unroll
      for (int w = 0; w < c.words; ++w) {
        if constexpr (is_16bit<T>)
          c.word[w] = __byte_perm(line[2 * w].word[i / 2], line[2 * w + 1].word[i / 2], i % 2 == 0 ? 0x5410 : 0x7632);
        else
          c.word[w] = line[w].word[i];
      }
      part.add_state(c, t, channel(i));
#pragma unroll
      for (int w = 0; w < c.words; w += 4)
        ptx::st_shared_v4(address(i, chunk, w / 4), make_uint4(c.word[w], c.word[w + 1], c.word[w + 2], c.word[w + 3]));
    }
    __syncwarp();
  }
  TK_DEVICE void get(Chunk<T>& c, int i, int chunk) const {
#pragma unroll
    for (int w = 0; w < c.words; w += 4) {
      const uint4 x = ptx::ld_shared_v4(address(i, chunk, w / 4));
      c.word[w] = x.x;
      c.word[w + 1] = x.y;
      c.word[w + 2] = x.z;
      c.word[w + 3] = x.w;
    }
  }
  // Chunk `chunk` of channel i and the one before it, both `phase` samples earlier.
  TK_DEVICE void get_window(Chunk<T>& before, Chunk<T>& here, int i, int chunk, int phase, bool shifted) const {
    get(here, i, chunk);
    get(before, i, chunk - 1);
    if (!shifted) return;
    Chunk<T> oldest;
    get(oldest, i, chunk - 2);
    here = earlier(before, here, phase);
    before = earlier(oldest, before, phase);
  }

 private:
  template <int By, int Count>
  TK_DEVICE static void keep_or_shift(u32 (&v)[Count], int keep) {
#pragma unroll
    for (int w = 0; w + By < Count; ++w) v[w] = keep ? v[w] : v[w + By];
  }
  // The 8 samples of a | b from 8 - phase on.
  TK_DEVICE static Chunk<T> earlier(const Chunk<T>& a, const Chunk<T>& b, int phase) {
    constexpr int W = Chunk<T>::words;
    u32 v[2 * W];
#pragma unroll
    for (int w = 0; w < W; ++w) {
      v[w] = a.word[w];
      v[W + w] = b.word[w];
    }
    const int words = is_16bit<T> ? phase / 2 : phase;
    if constexpr (W == 8) keep_or_shift<4>(v, words & 4);
    keep_or_shift<2>(v, words & 2);
    keep_or_shift<1>(v, words & 1);
    Chunk<T> c;  // v[1 ..] begin at 8 - phase, or one sample after it
#pragma unroll
    for (int w = 0; w < W; ++w)
      c.word[w] = is_16bit<T> ? __funnelshift_rc(v[w], v[w + 1], phase % 2 != 0 ? 16 : 32) : v[w + 1];
    return c;
  }
};

}  // namespace tkpy::short_conv
