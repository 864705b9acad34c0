// fft_conv_gradient_<M>: dk[j] = sum_b sum_t g[t] v[t - j],  dk_reverse[j - 1] = sum_b sum_t g[t] v[t + j]   per channel
// in   v = pre u, g = post dy: [B,H,L] bf16 or fp16, samples contiguous; L <= M
// out  [shares, H, used], [shares, H, used_reverse] f32: sums over a share of the batch. That of lag 0 is also the
//      gradient of the skip
// flow  for every row of the share: v -> values, kept; g -> values, times the conjugate of v's, added up. Then one
//       inverse transform, complex: its real parts are the lags 0, 1, .., its imaginary parts those that wrapped
//       (spectrum.cu). A thread keeps and adds its own values: in registers, from M = 8192 on in global memory
// grid  channels * shares; the order of all sums is fixed: same call, same bits
// cost  bytes 4 L a row (8 with gates); flops of two forward transforms a row, products of two terms as in transform.cuh
#include "rows.cuh"

namespace tkpy::fft_conv {

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

  TK_DEVICE Gradient(const void* shared, const GradientParams& p) : Base(shared, p.tables) {}

  TK_DEVICE static float4 pair(const Values& z, int b, int half) {
    return make_float4(z.re[b][2 * half], z.im[b][2 * half], z.re[b][2 * half + 1], z.im[b][2 * half + 1]);
  }
  TK_DEVICE static void set_pair(Values& z, int b, int half, const float4& x) {
    z.re[b][2 * half] = x.x, z.im[b][2 * half] = x.y, z.re[b][2 * half + 1] = x.z, z.im[b][2 * half + 1] = x.w;
  }

  // use(i, unit, z) for all values of a row that this thread holds.
  template <class Use>
  TK_DEVICE void values_of(const Gated& row, Use use) const {
    Base::template first<false>([&](float(&x)[8], int, int n) { row.load(x, n); });
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

  TK_DEVICE void run(const GradientParams& p) const {
    const int channel = static_cast<int>(blockIdx.x) % p.channels, share = static_cast<int>(blockIdx.x) / p.channels;
    const int rows = (p.batch + p.shares - 1) / p.shares, begin = share * rows, end = min(begin + rows, p.batch);
    float4* scratch = static_cast<float4*>(p.scratch) + static_cast<long long>(blockIdx.x) * M;
    Kept v, sum;
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
      const auto row = [&](const Rows& all) { return Row(all, task / 2, channel, p.length, p.half != 0); };
      values_of({row(second ? p.dy : p.u), row(second ? p.post : p.pre)}, [&](int i, int unit, const Values& z) {
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
    to_taps(p, sum);
  }

 private:
  TK_DEVICE void to_taps(const GradientParams& p, const Kept& sum) const {
    constexpr float scale = 1.0f / M;
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
    const long long row = blockIdx.x;
    Base::last([&](const float2(&z)[2], int n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int lag = n + e, back = M - lag;
        if (lag < p.used) p.dk[row * p.used + lag] = z[e].x;
        if (back <= p.used_reverse) p.dk_reverse[row * p.used_reverse + back - 1] = z[e].y;
      }
    });
  }
};

}  // namespace tkpy::fft_conv

#define TKPY_GRADIENT(M, INDEX)                                                             \
  extern "C" __global__ void __launch_bounds__(tkpy::fft_conv::kPlans[INDEX].threads())     \
      fft_conv_gradient_##M(const __grid_constant__ tkpy::fft_conv::GradientParams p) {     \
    extern __shared__ __align__(1024) unsigned char memory[];                               \
    tkpy::fft_conv::Gradient<INDEX>(memory, p).run(p);                                      \
  }
TKPY_GRADIENT(256, 0)
TKPY_GRADIENT(1024, 1)
TKPY_GRADIENT(2048, 2)
TKPY_GRADIENT(4096, 3)
TKPY_GRADIENT(8192, 4)
TKPY_GRADIENT(16384, 5)
