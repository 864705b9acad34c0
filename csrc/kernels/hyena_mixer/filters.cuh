// What the kernels of hyena_mixer have in common: rows of z in shared memory, and the short filters on them.
//   row     16 bytes of z: a sample of a CTA's channels of one part (x2, x1 or v). Row r of a tile and of the K - 1 before
//           it lies in place r ^ (r / 4 mod 8), so that eight threads which read every fourth one meet in no bank
//   thread  filters four samples in a row, for all channels of the CTA
#pragma once

#include "kernels/rows/rows.cuh"
#include "params.h"

namespace tkpy::hyena_mixer {

using namespace tk;

enum Part : int { kX2, kX1, kV };

template <class T>
struct Filters {
  static constexpr int kChannels = channels_of(sizeof(T)), kThreads = 32 * kChannels;
  static constexpr int kRun = 4;  // samples that a thread filters at a time
  using Row = rows::raw<T, kChannels>;
  using Rows = uint4[kHalo + kSamples];

  struct Filter {
    float tap[kMostTaps][kChannels], bias[kChannels];
  };

  const Params& p;
  Rows* const slots;
  Filter* const filter;  // of each part
  const int b, first;    // the sequence, the first channel
  const int kept = p.taps - 1;

  // The channel of z that is this part of channel c of the output.
  TK_DEVICE int input(int part, int c) const { return (c / p.part * 3 + part) * p.part + c % p.part; }
  TK_DEVICE static int place(int row) { return row ^ (row >> 2 & 7); }

  // An input of this sequence: what lay before the first for t < 0.
  TK_DEVICE T sample(int t, int channel) const {
    if (t >= 0) return static_cast<const T*>(p.z)[b * p.z_batch + t * p.z_time + channel];
    if (!p.before) return T{};
    return static_cast<const T*>(p.before)[(static_cast<long long>(b) * 3 * p.conv.channels + channel) * kept + kept + t];
  }

  // ---- Rows -------------------------------------------------------------------------------------------------------
  // Of rows that are gathered a thread takes one channel, neighbours the next.
  TK_DEVICE static int own() { return static_cast<int>(threadIdx.x) % kChannels; }
  TK_DEVICE static T& element(uint4& row) { return reinterpret_cast<T*>(&row)[own()]; }
  // The channel (of the output) whose part a thread asks for: the first of 16 bytes, or its own, which may not be there.
  TK_DEVICE int asked(bool vectors) const { return first + (vectors ? 0 : own()); }

  // A tile's samples to `to`; those past the end are 0. Sample t of what this thread asks for is from[t time].
  TK_DEVICE void fetch(Rows& to, const T* from, long long time, bool vectors, int tile) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int r = vectors ? thread : thread / kChannels, t = kSamples * tile + r;
    from += t * time;
    if (vectors) {
      const u32 at = ptx::shared_address(&to[place(kHalo + r)]);  // place() moves rows within 32
#pragma unroll
      for (int k = 0; k < kSamples; k += kThreads)
        ptx::cp_async_16(at + k * kRowBytes, from + k * time, t + k < p.length ? kRowBytes : 0);
      return;
    }
    const int count = asked(false) < p.conv.channels ? p.length - t : 0;
#pragma unroll 4
    for (int k = 0; k < kSamples; k += kThreads / kChannels) element(to[place(kHalo + r + k)]) = k < count ? from[k * time] : T{};
  }
  // A part of z, and the K - 1 samples before, to slots[slot].
  TK_DEVICE void fetch(int part, int slot, int tile) const {
    const T* const from = static_cast<const T*>(p.z) + b * p.z_batch + input(part, asked(p.vectors));
    fetch(slots[slot], from, p.z_time, p.vectors, tile);
    const bool copied = p.vectors && tile > 0;
    const int back = kept - static_cast<int>(threadIdx.x) / (copied ? 1 : kChannels), t = kSamples * tile - back;
    if (back <= 0) return;
    uint4& to = slots[slot][place(kHalo - back)];
    if (copied)
      ptx::cp_async_16(ptx::shared_address(&to), from + t * p.z_time, kRowBytes);
    else
      element(to) = asked(false) < p.conv.channels ? sample(t, input(part, asked(false))) : T{};
  }
  TK_DEVICE Row row(int slot, int r) const {
    const uint4 x = ptx::ld_shared_v4(ptx::shared_address(&slots[slot][place(r)]));
    Row row;
    row.word[0] = x.x, row.word[1] = x.y, row.word[2] = x.z, row.word[3] = x.w;
    return row;
  }

  // ---- Filters ----------------------------------------------------------------------------------------------------
  TK_DEVICE void fetch_filters() const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 3 * kChannels; i += kThreads) {
      const int part = i / kChannels, e = i % kChannels, c = min(first + e, p.conv.channels - 1), from = input(part, c);
      float value[1];
#pragma unroll 1
      for (int j = 0; j < p.taps; ++j) {
        rows::parameters<T>(value, p.weight, from * p.taps + j, from * p.taps + j + 1, 0.0f);
        filter[part].tap[j][e] = value[0];
      }
      rows::parameters<T>(value, p.bias, from, from + 1, 0.0f);
      filter[part].bias[e] = value[0];
    }
  }
  TK_DEVICE static void load(float (&to)[kChannels], const float (&from)[kChannels]) {
#pragma unroll
    for (int e = 0; e < kChannels; e += 4) {
      const uint4 x = ptx::ld_shared_v4(ptx::shared_address(&from[e]));
      to[e] = __uint_as_float(x.x), to[e + 1] = __uint_as_float(x.y);
      to[e + 2] = __uint_as_float(x.z), to[e + 3] = __uint_as_float(x.w);
    }
  }
  // A part's filter at samples at .. at + 3 of the tile whose rows are slots[slot]. Of the usual number of taps each row is
  // read once.
  TK_DEVICE void apply(float (&out)[kRun][kChannels], int part, int slot, int at) const {
    const Filter& own = filter[part];
#pragma unroll
    for (int i = 0; i < kRun; ++i) load(out[i], own.bias);
    const auto add = [&](int i, const float (&tap)[kChannels], const float (&value)[kChannels]) {
#pragma unroll
      for (int e = 0; e < kChannels; ++e) out[i][e] = fmaf(tap[e], value[e], out[i][e]);
    };
    float tap[kUsualTaps][kChannels], value[kChannels];
    if (p.taps == kUsualTaps) {
#pragma unroll
      for (int j = 0; j < kUsualTaps; ++j) load(tap[j], own.tap[j]);
#pragma unroll
      for (int r = 1 - kUsualTaps; r < kRun; ++r) {
        row(slot, kHalo + at + r).get(value);
#pragma unroll
        for (int j = 0; j < kUsualTaps; ++j)
          if (const int i = r + kUsualTaps - 1 - j; i >= 0 && i < kRun) add(i, tap[j], value);
      }
      return;
    }
#pragma unroll 1
    for (int j = 0; j < p.taps; ++j) {
      load(tap[0], own.tap[j]);
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        row(slot, kHalo + at + i + j - kept).get(value);
        add(i, tap[0], value);
      }
    }
  }
};

}  // namespace tkpy::hyena_mixer
