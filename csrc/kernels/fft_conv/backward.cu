// fft_conv_backward_<M>: all gradients of y = post conv(v, k, k_reverse), v = pre u, from dy; with g = post dy
//   dk[j] = sum_b sum_t g[t] v[t - j],  dk_reverse[j - 1] = sum_b sum_t g[t] v[t + j]     per channel
//   w = the correlation of g with the taps:  du = pre w,  dpre = u w;   dpost = dy conv(v)
// in   u, pre, dy, post [B,H,L] bf16 or fp16, samples contiguous; L <= M | spectrum [H,M] complex f32 (spectrum.cu)
// out  du, dpre, dpost of u's type, each only if wanted | dk [groups, H, used], dk_reverse [groups, H, used_reverse] f32,
//      a sum for every cluster. That of lag 0 is also the gradient of the skip
// flow  for every row of the share: v -> values, kept [, times the taps -> back -> dy -> dpost]; g -> values, times the
//       conjugate of v's, added up [, times the conjugate taps -> back -> pre, u -> du, dpre]; backward.cuh. At the end one
//       inverse transform a cluster, complex: its real parts are the lags 0, 1, .., its imaginary parts those that wrapped
//       (spectrum.cu). What wants no gradient of the filters is fft_conv_<M> alone: rows side by side
// grid  channels * shares, a cluster to the shares of a channel; the order of all sums is fixed: same call, same bits
// barriers  those of transform.cuh, one more for a row that does not go back; cluster barriers as in backward.cuh
// cost  bytes 6 L a row (4 without du), 14 with gates, 8 M a channel, 4 (used + used_reverse) a channel and group; flops of
//       two transforms there a row and of one back (24 M (N1 + 2 N2 + 2 N3) there and back), two back with gates
#include "backward.cuh"
#include "entries.cuh"

namespace tkpy::fft_conv {

// Where the rows of a channel come from and go to.
template <int Index>
struct Ends {
  const BackwardParams& p;
  int channel;

  TK_DEVICE Row row(const Rows& rows, int batch) const { return Row(rows, batch, channel, p.length, p.half != 0); }
  TK_DEVICE void bring(const Transform<Index>& transform, int batch, bool g) const {
    transform.template first<false>([&](float(&x)[8], int, int n) {
      Gated{row(g ? p.dy : p.u, batch), row(g ? p.post : p.pre, batch)}.load(x, n);
    });
  }
  TK_DEVICE bool wants(bool g) const { return g ? p.du.data || p.dpre.data : p.dpost.data != nullptr; }
  TK_DEVICE const float4* spectrum() const {
    return static_cast<const float4*>(p.spectrum) + static_cast<long long>(channel) * (Transform<Index>::M / 2);
  }
  TK_DEVICE void take(const Transform<Index>& transform, int batch, bool g) const {
    const Row out = row(g ? p.du : p.dpost, batch), gate = row(g ? p.pre : p.dy, batch);
    const Row out2 = g ? row(p.dpre, batch) : row(Rows{}, batch), gate2 = row(p.u, batch);
    transform.last_real([&](float(&x)[8], int n) {
      if (n >= p.length) return;
      if (out.data) store_gated(out, gate, x, n);
      if (out2.data) store_gated(out2, gate2, x, n);
    });  // a warp's columns, which it alone fills with the next row
  }
  TK_DEVICE void leave() const { __syncthreads(); }
};

template <int Index>
TK_DEVICE void backward(const BackwardParams& p, const void* memory) {
  using B = Backward<Index>;
  const B of(memory, p.tables);
  const Share share(static_cast<int>(blockIdx.x), p.channels, p.shares, p.cluster, p.batch);
  typename B::Sum sum;
  of.rows(sum, 8 * B::M, static_cast<float4*>(p.scratch) + static_cast<long long>(blockIdx.x) * B::M, share,
          Ends<Index>{p, share.channel});
  if (!of.of_cluster(sum, p.cluster)) return;
  constexpr float scale = 1.0f / B::M;
  const long long slot = share.slot;
  of.back(sum, scale);
  of.last([&](const float2(&z)[2], int n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int lag = n + e, back = B::M - lag;
      if (lag < p.used) p.dk[slot * p.used + lag] = z[e].x;
      if (back <= p.used_reverse) p.dk_reverse[slot * p.used_reverse + back - 1] = z[e].y;
    }
  });
}

}  // namespace tkpy::fft_conv

// 16 warps on a multiprocessor, of 128 registers; 8 of 255 where the sums in registers are long.
#define TKPY_BACKWARD(M, INDEX)                                                                                         \
  TKPY_ENTRY(fft_conv_backward_##M, BackwardParams, backward<INDEX>(p, memory), TKPY_PLAN_THREADS(INDEX),               \
             (M > tkpy::fft_conv::kInRegisters || M <= 1024 ? 512 : 256) / TKPY_PLAN_THREADS(INDEX))
TKPY_EVERY_PLAN(TKPY_BACKWARD)
