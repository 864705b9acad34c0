// Sums over rows of values of g times those of v conjugated, and the way back: of rows that a CTA holds (gradient.cu) and
// of longer ones (long_filter.cu).
#pragma once

#include "rows.cuh"

namespace tkpy::fft_conv {

// A share of `rows` in shares of equal size but the last ones: first row, and where it ends.
struct Share {
  int begin, end;
  TK_DEVICE Share(int share, int shares, int rows) {
    const int each = (rows + shares - 1) / shares;
    begin = share * each;
    end = min(begin + each, rows);
  }
};

template <int Index>
struct Gradient : Transform<Index> {
  using Base = Transform<Index>;
  using Base::chunks, Base::units, Base::M, Base::Warps;
  using Values = typename Base::Values;
  static constexpr bool in_registers = M <= kInRegisters;
  static constexpr int kept = in_registers ? units : 1;
  static constexpr int unroll = in_registers ? units : 1;

  // Values of all units of this thread, in pairs of complex numbers.
  struct Kept {
    float4 x[kept][chunks][2];
    float4* memory;
    TK_DEVICE float4 get(int i, int unit, int b, int half) const {
      if constexpr (in_registers)
        return x[i][b][half];
      else
        return memory[Base::value_at(unit, b, half)];
    }
    TK_DEVICE void set(int i, int unit, int b, int half, float4 value) {
      if constexpr (in_registers)
        x[i][b][half] = value;
      else
        memory[Base::value_at(unit, b, half)] = value;
    }
  };

  using Base::Base;

  TK_DEVICE static float4 pair(const Values& z, int b, int half) {
    return make_float4(z.re[b][2 * half], z.im[b][2 * half], z.re[b][2 * half + 1], z.im[b][2 * half + 1]);
  }
  TK_DEVICE static void set_pair(Values& z, int b, int half, const float4& x) {
    z.re[b][2 * half] = x.x, z.im[b][2 * half] = x.y, z.re[b][2 * half + 1] = x.z, z.im[b][2 * half + 1] = x.w;
  }

  // use(i, unit, z) for all values of a row that this thread holds.
  template <bool Complex, class Load, class Use>
  TK_DEVICE void values_of(Load load, Use use) const {
    Base::template first<Complex>(load);
    Base::to_values();
    const typename Base::Third pass(Base::tables);
#pragma unroll unroll
    for (int i = 0; i < units; ++i) {
      Values z;
      Base::third(pass, z, warp_index() + i * Warps);
      use(i, warp_index() + i * Warps, z);
    }
    __syncthreads();
  }

  // Sums over rows begin .. end - 1 of g times v conjugated; source(row, second) gives what loads v, or g.
  template <bool Complex, class Source>
  TK_DEVICE void add_up(Kept& sum, float4* scratch, int begin, int end, Source source) const {
    Kept v;
    v.memory = scratch;
    sum.memory = scratch + M / 2;
#pragma unroll unroll
    for (int i = 0; i < units; ++i)
#pragma unroll
      for (int b = 0; b < chunks; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          sum.set(i, warp_index() + i * Warps, b, half, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
#pragma unroll 1
    for (int task = 2 * begin; task < 2 * end; ++task) {  // a row of v, then that of g
      const bool second = task % 2 != 0;
      values_of<Complex>(source(task / 2, second), [&](int i, int unit, const Values& z) {
#pragma unroll
        for (int b = 0; b < chunks; ++b)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float4 g = pair(z, b, half);
            if (!second) {
              v.set(i, unit, b, half, g);
              continue;
            }
            const float4 a = v.get(i, unit, b, half), s = sum.get(i, unit, b, half);
            const float2 x = times_conj({g.x, g.y}, {a.x, a.y}), y = times_conj({g.z, g.w}, {a.z, a.w});
            sum.set(i, unit, b, half, make_float4(s.x + x.x, s.y + x.y, s.z + y.x, s.w + y.y));
          }
      });
    }
  }

  // The sums times a factor, transformed back: store(z, n) gets complex samples n, n + 1.
  template <class Store>
  TK_DEVICE void back(const Kept& sum, float scale, Store store) const {
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
    Base::last(store);
  }
};

}  // namespace tkpy::fft_conv
