// fft_conv_long_backward_<M'>: the inner rows of a long row's gradients, a row (h, j0) of M' points at a time
//   v_work, g_work, from fft_conv_long_in --> sums: values of g times those of v conjugated, over the batch, and back to M'
//   samples, for fft_conv_long_filter_out; and where they are wanted, in place, for fft_conv_long_out:
//   v_work --> that of the convolution of v;  g_work --> that of the correlation of g with the taps
// in   work [B,H,N0,2,M'] f32, spectrum [H,N0,M'] complex f32      out  sums [groups,H,N0,2,M'] f32, one for every cluster
// grid  H N0 * shares of the batch, a cluster to the shares of a row; the order of all sums is fixed: same call, same bits
// flow, barriers, precision  backward.cuh; whole frequencies, complex ends. A row is read whole before it is written
// cost  bytes a point and row: 16, 8 more for each of those in place; 8 a point and channel for the spectrum and for sums
#include "backward.cuh"
#include "entries.cuh"
#include "outer.cuh"

namespace tkpy::fft_conv {

// Where the inner rows of one channel and frequency come from and go to.
template <int Index>
struct WorkEnds {
  static constexpr int M = Transform<Index>::M;
  const LongBackwardParams& p;
  int channel;  // and frequency

  TK_DEVICE float* work(int batch, bool g) const {
    return (g ? p.g_work : p.v_work) + (static_cast<long long>(batch) * p.rows + channel) * 2 * M;
  }
  TK_DEVICE void bring(const Transform<Index>& transform, int batch, bool g) const {
    transform.template first<true>([&](float(&x)[8], int im, int n) { load_floats(x, work(batch, g) + im * M + n); });
  }
  TK_DEVICE bool wants(bool g) const { return (g ? p.wants_g : p.wants_v) != 0; }
  TK_DEVICE const float4* spectrum() const {
    return static_cast<const float4*>(p.spectrum) + static_cast<long long>(channel) * (M / 2);
  }
  TK_DEVICE void take(const Transform<Index>& transform, int batch, bool g) const {
    float* to = work(batch, g);
    transform.last([&](const float2(&z)[2], int n) { put_complex<M>(to, z, n); });
  }
  TK_DEVICE void leave() const { __syncthreads(); }
};

template <int Index>
TK_DEVICE void long_backward(const LongBackwardParams& p, const void* memory) {
  using B = Backward<Index>;
  const B of(memory, p.tables);
  const Share share(static_cast<int>(blockIdx.x), p.rows, p.shares, p.cluster, p.batch);
  typename B::Sum sum;
  of.rows(sum, 8 * B::M, static_cast<float4*>(p.scratch) + static_cast<long long>(blockIdx.x) * B::M, share,
          WorkEnds<Index>{p, share.channel});
  if (!of.of_cluster(sum, p.cluster)) return;
  float* to = p.sums + static_cast<long long>(share.slot) * 2 * B::M;
  of.back(sum, p.scale);
  of.last([&](const float2(&z)[2], int n) { put_complex<B::M>(to, z, n); });
}

}  // namespace tkpy::fft_conv

#define TKPY_LONG_BACKWARD(M, INDEX) \
  TKPY_ENTRY(fft_conv_long_backward_##M, LongBackwardParams, long_backward<INDEX>(p, memory), TKPY_PLAN_THREADS(INDEX))
TKPY_EVERY_INNER(TKPY_LONG_BACKWARD)
