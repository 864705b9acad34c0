// Both ends of a convolution's gradients, of rows that a CTA holds (backward.cu), that a cluster holds (cluster_backward.cu)
// and of longer ones (long_backward.cu): v and g are transformed once each. Of their values V and G, and those of the taps
// K, the gradient of v is that of G conj(K), the gradient of the taps that of the sum over rows of G conj(V), and the
// convolution itself that of V K.
//
// A thread keeps V of the row at hand and the sum, its own units of the third pass only. Up to 4096 points, and of rows on
// clusters, V lies in shared memory behind the row and the sum in registers (both there would spill), but that of units from
// `Kept` on behind V; else both in global memory that L2 holds. G and what goes back are in registers a unit at a time. CTAs
// that sum parts of one channel's rows are a cluster, and add their sums up as a tree: one pushes its sum into the shared
// memory of another, where the row was, a cluster barrier before (the last one has been read) and after each step.
#pragma once

#include "filter.cuh"
#include "rows.cuh"

namespace tkpy::fft_conv {

// Rows of one channel that a CTA sums: shares are of equal size but the last ones, which may be empty. CTAs of a cluster
// sum one after another's; the shares of all channels in turn.
struct Share {
  int channel, begin, end, slot;  // slot: of the cluster's sum, [groups][channels]
  TK_DEVICE Share(int index, int channels, int shares, int cluster, int rows) {
    const int each = (rows + shares - 1) / shares, rank = index % cluster;
    slot = index / cluster;
    channel = slot % channels;
    const int share = slot / channels * cluster + rank;
    begin = min(share * each, rows);
    end = min(begin + each, rows);
  }
};

template <int Index, bool OnChip = kPlans[Index].points() <= kInRegisters, int Kept = OnChip ? Transform<Index>::units : 0>
struct Backward : Transform<Index> {
  using Base = Transform<Index>;
  using Base::chunks, Base::units, Base::M, Base::Warps;
  using Values = typename Base::Values;
  static constexpr int unroll = OnChip ? units : 1;

  // Values of all units of this thread, in pairs of complex numbers: the sum, and V.
  struct Sum {
    float4 x[Kept ? Kept : 1][chunks][2];
    u32 shared;  // of the units from Kept on
    float4* memory;
    TK_DEVICE u32 place(int unit, int b, int half) const {
      return shared + 16 * Base::value_at(unit - Kept * Warps, b, half);
    }
    TK_DEVICE float4 get(int i, int unit, int b, int half) const {
      if constexpr (!OnChip)
        return memory[Base::value_at(unit, b, half)];
      else
        return i < Kept ? x[i][b][half] : as_floats(ptx::ld_shared_v4(place(unit, b, half)));
    }
    TK_DEVICE void set(int i, int unit, int b, int half, float4 value) {
      if constexpr (!OnChip)
        memory[Base::value_at(unit, b, half)] = value;
      else if (i < Kept)
        x[i][b][half] = value;
      else
        ptx::st_shared_v4(place(unit, b, half), as_words(value));
    }
  };
  struct OfV {
    u32 shared;
    float4* memory;
    TK_DEVICE float4 get(int unit, int b, int half) const {
      if constexpr (OnChip)
        return as_floats(ptx::ld_shared_v4(shared + 16 * Base::value_at(unit, b, half)));
      else
        return memory[Base::value_at(unit, b, half)];
    }
    TK_DEVICE void set(int unit, int b, int half, float4 value) const {
      if constexpr (OnChip)
        ptx::st_shared_v4(shared + 16 * Base::value_at(unit, b, half), as_words(value));
      else
        memory[Base::value_at(unit, b, half)] = value;
    }
  };

  using Base::Base;

  TK_DEVICE static uint4 as_words(float4 x) {
    return make_uint4(__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z), __float_as_uint(x.w));
  }
  TK_DEVICE static float4 as_floats(uint4 x) {
    return make_float4(__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w));
  }
  TK_DEVICE static float4 pair(const Values& z, int b, int half) {
    return make_float4(z.re[b][2 * half], z.im[b][2 * half], z.re[b][2 * half + 1], z.im[b][2 * half + 1]);
  }
  TK_DEVICE static void set_pair(Values& z, int b, int half, const float4& x) {
    z.re[b][2 * half] = x.x, z.im[b][2 * half] = x.y, z.re[b][2 * half + 1] = x.z, z.im[b][2 * half + 1] = x.w;
  }
  // use(i, unit, b, half) for all pairs of values that this thread holds.
  template <class Use>
  TK_DEVICE static void each(Use use) {
#pragma unroll unroll
    for (int i = 0; i < units; ++i)
#pragma unroll
      for (int b = 0; b < chunks; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half) use(i, warp_index() + i * Warps, b, half);
  }

  // The sum over the rows of a share, v of a row and then its g; what is wanted of them goes back. V lies `behind` so many
  // bytes of the row, or in scratch.
  //   ends.bring(transform, row, g) v, or g, through `first`
  //   ends.wants(g)                 is the convolution of v, or the gradient from g, wanted?
  //   ends.spectrum()               of the taps, then
  //   ends.take(transform, row, g)  by `last`, or
  //   ends.leave()                  where nothing goes back: before the next row comes, this one has been read
  template <class Ends>
  TK_DEVICE void rows(Sum& sum, u32 behind, float4* scratch, const Share& share, const Ends& ends) const {
    const OfV v{Base::memory + behind, scratch};
    sum.shared = v.shared + 8 * M;
    sum.memory = scratch + M / 2;
    each([&](int i, int unit, int b, int half) { sum.set(i, unit, b, half, make_float4(0.0f, 0.0f, 0.0f, 0.0f)); });
#pragma unroll 1
    for (int task = 2 * share.begin; task < 2 * share.end; ++task) {
      const bool g = task % 2 != 0, back = ends.wants(g);
      ends.bring(*this, task / 2, g);
      Base::to_values();
      const typename Base::Third pass(Base::tables);
#pragma unroll unroll
      for (int i = 0; i < units; ++i) {
        const int unit = warp_index() + i * Warps;
        Values z;
        Base::third(pass, z, unit);
        keep_or_add(v, sum, i, unit, z, g);
        if (!back) continue;
        times_taps(*this, z, Taps<Index>(ends.spectrum(), unit), g ? -1.0f : 1.0f);
        Base::third_back(pass, z, unit);
      }
      if (back) {
        Base::from_values();
        ends.take(*this, task / 2, g);
      } else {
        ends.leave();
      }
    }
  }

  // Values of v are kept, those of g are multiplied with them and added.
  TK_DEVICE static void keep_or_add(const OfV& v, Sum& sum, int i, int unit, const Values& z, bool g) {
#pragma unroll
    for (int b = 0; b < chunks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 x = pair(z, b, half);
        if (!g) {
          v.set(unit, b, half, x);
          continue;
        }
        const float4 a = v.get(unit, b, half), s = sum.get(i, unit, b, half);
        const float2 p = times_conj({x.x, x.y}, {a.x, a.y}), q = times_conj({x.z, x.w}, {a.z, a.w});
        sum.set(i, unit, b, half, make_float4(s.x + p.x, s.y + p.y, s.z + q.x, s.w + q.y));
      }
  }

  // The sums of a cluster, added up in its first CTA: true there.
  TK_DEVICE bool of_cluster(Sum& sum, int cluster) const {
    const int rank = static_cast<int>(blockIdx.x) % cluster;
#pragma unroll 1
    for (int step = 1; step < cluster; step *= 2) {
      const bool gives = rank % (2 * step) == step, takes = rank % (2 * step) == 0 && rank + step < cluster;
      cluster_sync();
      if (gives) {
        const u32 there = ptx::mapa(Base::memory, static_cast<u32>(rank - step));
        each([&](int i, int unit, int b, int half) {
          ptx::st_cluster_v4(there + 16 * Base::value_at(unit, b, half), as_words(sum.get(i, unit, b, half)));
        });
      }
      cluster_sync();
      if (takes)
        each([&](int i, int unit, int b, int half) {
          const float4 x = as_floats(ptx::ld_shared_v4(Base::memory + 16 * Base::value_at(unit, b, half)));
          const float4 s = sum.get(i, unit, b, half);
          sum.set(i, unit, b, half, make_float4(s.x + x.x, s.y + x.y, s.z + x.z, s.w + x.w));
        });
    }
    __syncthreads();  // all has been read that the way back writes over
    return rank == 0;
  }

  // The sums times a factor, up to `last`.
  TK_DEVICE void back(const Sum& sum, float scale) const {
    const typename Base::Third pass(Base::tables);
#pragma unroll unroll
    for (int i = 0; i < units; ++i) {
      const int unit = warp_index() + i * Warps;
      Values z;
#pragma unroll
      for (int b = 0; b < chunks; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float4 x = sum.get(i, unit, b, half);
          set_pair(z, b, half, make_float4(scale * x.x, scale * x.y, scale * x.z, scale * x.w));
        }
      Base::third_back(pass, z, unit);
    }
    Base::from_values();
  }
};

}  // namespace tkpy::fft_conv
