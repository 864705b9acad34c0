// All gradients of rows longer than a CTA holds that never leave the chip: 8 M' complex points, M' = 4096 or 8192, by clusters
// of 8 CTAs, as fft_conv_backward_<M> makes those of shorter rows    (long_backward.cu has longer ones, and too few of these)
//   fft_conv_cluster_backward_<M'>   du, dpre, dpost, dk, dk_reverse as in backward.cu         per channel, L <= 8 M' samples
// in   u, pre, dy, post [B,H,L] bf16 or fp16, samples contiguous | k [H, taps], k_reverse [H, taps_reverse], skip [H] f32, where
//      du, dpre or dpost is wanted
// out  du, dpre, dpost of u's type, each only if wanted | dk [shares, H, used], dk_reverse [shares, H, used_reverse] f32, a sum
//      for every cluster. That of lag 0 is also the gradient of the skip
// grid a cluster to a share of a channel's batch, the channels inside the shares; the order of all sums is fixed: same
//      call, same bits
// flow the spectrum of the taps, as in cluster.cu; for every row of the share: u, pre --> scatter | first .. third: V, kept [,
//      times the taps, third back .. last | gather -> dy -> dpost]; dy, post --> the same: G, times the conjugate of V, added up [, times the conjugate taps .. |
//      gather -> pre, u -> du, dpre]. At the end the sum, third back .. last | gather, complex: real parts are the lags 0,
//      1, .., imaginary parts those that wrapped. cluster.cuh has scatter and gather, backward.cuh the rest
// cluster barriers  those of cluster.cuh for each of u and dy; where nothing goes back, a CTA arrives at the one before the
//      next `scatter` when its third pass has read. The sum waits at the last of these before it goes where a row was
// shared memory, registers  of a point 8 bytes of the row, 6 of the spectrum, 8 of V, 4 of a half of the sum, of which 32
//      registers hold the rest: 104 KiB and 128 threads of 255 registers where M' = 4096, two CTAs a multiprocessor, 208 KiB
//      and 256 threads where it is 8192, one. The whole sum in registers would spill
// precision  as in cluster.cu; V, G and their sums are floats
// cost bytes 6 L a row (4 without du), 14 with gates, 4 a tap a channel and share, and 4 a tap of its gradient; between
//      CTAs 28 a point there and 14 back for each of the two that is wanted; flops of two forwards a row with gates
#include "backward.cuh"
#include "cluster.cuh"
#include "entries.cuh"

namespace tkpy::fft_conv {

// Where the rows of a channel come from and go to.
template <int Index>
struct ClusterEnds {
  using F = Transform<Index>;
  static constexpr int behind = row_cluster_bytes(F::plan);  // a row and a spectrum lies V
  const BackwardParams& p;
  int channel, rank;
  ClusterSpectrum<Index> of_taps;

  // Made anew for every row: what depends on the rank, factors above all, is not kept from one to the next, which takes
  // more registers than there are.
  TK_DEVICE ClusterRow<Index> cluster(const F& transform) const {
    int of_cluster = rank;
    ptx::hold(of_cluster);
    return ClusterRow<Index>(transform, of_cluster);
  }
  TK_DEVICE Row row(const Rows& rows, int batch) const { return Row(rows, batch, channel, p.length, p.half != 0); }
  TK_DEVICE void bring(const F& transform, int batch, bool g) const {
    const ClusterRow<Index> here = cluster(transform);
    here.bring(Gated{row(g ? p.dy : p.u, batch), row(g ? p.post : p.pre, batch)});
  }
  TK_DEVICE bool wants(bool g) const { return g ? p.du.data || p.dpre.data : p.dpost.data != nullptr; }
  TK_DEVICE const ClusterSpectrum<Index>& spectrum() const { return of_taps; }
  TK_DEVICE void take(const F& transform, int batch, bool g) const {
    const ClusterRow<Index> here = cluster(transform);
    here.last();
    float2 z[4][kRowCluster];
    float x[4][8];
    here.gather(z);
    here.as_rows(x, z);
    const Row out = row(g ? p.du : p.dpost, batch);
    if (out.data) here.store(out, row(g ? p.pre : p.dy, batch), x);
    if (g && p.dpre.data) here.store(row(p.dpre, batch), row(p.u, batch), x);
  }
  TK_DEVICE void leave() const { ClusterRow<Index>::open(); }
};

// x to places n .. n + 7 of so many; n is a multiple of 8.
TK_DEVICE void store_taps(float* taps, int used, int n, const float (&x)[8]) {
  if (n + 8 <= used && reinterpret_cast<unsigned long long>(taps) % 16 == 0) {
    *reinterpret_cast<float4*>(taps + n) = make_float4(x[0], x[1], x[2], x[3]);
    *reinterpret_cast<float4*>(taps + n + 4) = make_float4(x[4], x[5], x[6], x[7]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (n + i < used) taps[n + i] = x[i];
  }
}

template <int Index>
TK_DEVICE void cluster_backward(const BackwardParams& p, const void* memory) {
  using B = Backward<Index, true, kUnitsInRegisters>;
  constexpr int points = kRowCluster * B::M;
  const B of(memory, p.tables);
  const int rank = static_cast<int>(blockIdx.x) % kRowCluster;
  const Share share(static_cast<int>(blockIdx.x) / kRowCluster, p.channels, p.shares, 1, p.batch);
  const ClusterEnds<Index> ends{p, share.channel, rank, ClusterSpectrum<Index>(of)};
  typename B::Sum sum;
  ClusterRow<Index>::open();
  if (p.filter.k) ends.of_taps.make(ends.cluster(of), ChannelTaps(p.filter, share.channel, points), nullptr);
  of.rows(sum, ClusterEnds<Index>::behind, nullptr, share, ends);
  cluster_wait();
  of.back(sum, 1.0f / points);
  const ClusterRow<Index> cluster = ends.cluster(of);
  cluster.last();
  float2 z[4][kRowCluster];
  cluster.gather(z);
  float ahead[4][8], behind[4][8];
  cluster.as_rows(ahead, z);
  cluster.template as_rows<true>(behind, z);
  float* dk = p.dk + static_cast<long long>(share.slot) * p.used;
  float* dk_reverse = p.dk_reverse + static_cast<long long>(share.slot) * p.used_reverse;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float turned[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) turned[e] = behind[i][7 - e];
    store_taps(dk, p.used, cluster.place(i), ahead[i]);
    store_taps(dk_reverse, p.used_reverse, points - 8 - cluster.place(i), turned);
  }
  cluster.finish();
}

}  // namespace tkpy::fft_conv

#define TKPY_CLUSTER_BACKWARD(M, INDEX)                                                                            \
  TKPY_ENTRY(fft_conv_cluster_backward_##M, BackwardParams, cluster_backward<INDEX>(p, memory),                    \
             TKPY_PLAN_THREADS(INDEX), 256 / TKPY_PLAN_THREADS(INDEX))
TKPY_EVERY_CLUSTERED(TKPY_CLUSTER_BACKWARD)
