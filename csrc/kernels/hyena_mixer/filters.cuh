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
  // The row whose element e is f(e).
  template <class F>
  TK_DEVICE static void gather(uint4& to, F f) {
    T each[kChannels];
#pragma unroll
    for (int e = 0; e < kChannels; ++e) each[e] = f(e);
    Row row;
#pragma unroll
    for (int i = 0; i < Row::words; ++i) {
      if constexpr (is_16bit<T>)
        row.word[i] = each[2 * i].bits | static_cast<u32>(each[2 * i + 1].bits) << 16;
      else
        row.word[i] = __float_as_uint(each[i]);
    }
    ptx::st_shared_v4(ptx::shared_address(&to), make_uint4(row.word[0], row.word[1], row.word[2], row.word[3]));
  }
  // The rows of a tile and of its halo, to slots[slot]; those past the end are 0. Eight neighbouring threads begin at a
  // multiple of 8.
  TK_DEVICE void fetch(int part, int slot, int tile) const {
    const T* const from = static_cast<const T*>(p.z) + b * p.z_batch + input(part, first);
#pragma unroll 1
    for (int r = static_cast<int>(threadIdx.x); r < kHalo + kSamples; r += kThreads) {
      if (r < kHalo - kept) continue;
      const int t = kSamples * tile + r - kHalo;
      uint4& to = slots[slot][place(r)];
      if (p.vectors && t >= 0)
        ptx::cp_async_16(ptx::shared_address(&to), t < p.length ? from + t * p.z_time : p.z, t < p.length ? kRowBytes : 0);
      else
        gather(to, [&](int e) {
          return t < p.length && first + e < p.conv.channels ? sample(t, input(part, first + e)) : T{};
        });
    }
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
  // A part's filter at samples at .. at + 3 of the tile whose rows are slots[slot].
  TK_DEVICE void apply(float (&out)[kRun][kChannels], int part, int slot, int at) const {
    const Filter& own = filter[part];
#pragma unroll
    for (int i = 0; i < kRun; ++i) load(out[i], own.bias);
#pragma unroll 1
    for (int j = 0; j < p.taps; ++j) {
      float tap[kChannels];
      load(tap, own.tap[j]);
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        float value[kChannels];
        row(slot, kHalo + at + i + j - kept).get(value);
#pragma unroll
        for (int e = 0; e < kChannels; ++e) out[i][e] = fmaf(tap[e], value[e], out[i][e]);
      }
    }
  }
};

}  // namespace tkpy::hyena_mixer
