// fft_conv of rows longer than a CTA holds that never leave the chip: 8 M' complex points, M' = 4096 or 8192, by a
// cluster of 8 CTAs                                          (long.cu takes longer rows, and fewer than fill the machine)
//   fft_conv_cluster_<M'>   y = post conv(v, k, k_reverse), v = pre u      per (batch, channel) row of L <= 8 M' samples
// in   u, pre, post [B,H,L] bf16 or fp16 | k [H, taps], k_reverse [H, taps_reverse], skip [H] f32, or their spectrum
//      [H,8,M'] complex f32 of a call before
// out  y of u's type; with post2 and out2 a second gate of the same convolution; the spectrum, where it is to be kept
// grid as many clusters as run at once; each takes so many rows one after another, those of a channel together, and makes or
//      loads the spectrum when the channel changes. Where a channel's rows lie in several clusters, all of these do
// flow gl k, k_reverse -> 8 points over n0 -> shared memory of CTA j0 | first | second | third -> spectrum, behind the row;
//      gl u, pre --16 B--> registers -> v -> 8 points over n0 -> shared memory of CTA j0 | first | second | third, times
//      spectrum, third back | second back | last -> in place | from all CTAs -> 8 points back -> gates --16 B--> gl;
//      outer | are cluster barriers. cluster.cuh has the exchange and the spectrum, transform.cuh what lies between
// precision  as in transform.cuh; on the way back the exchange is of floats, on the way there of two bf16 terms; the
//      spectrum has 16 bits of mantissa, as they have
// shared memory  8 bytes a point and 6 of spectrum: 56 or 112 KiB a CTA, of which a multiprocessor holds 4 or 2, and no byte
//      more. Rows of 131072 would leave it one CTA, with nothing to do while it waits for the others: long.cu is faster then
// cost bytes 2 (2 + gates) L a row and 4 (taps + taps_reverse) a channel, 64 M' of one kept (and as many where it is left);
//      14 a point between CTAs; flops 24 M' (2 N1 + 2 N2 + 2 N3) a CTA of tensor cores and half of it for a spectrum,
//      about 30 a sample for the factor of 8
#include "cluster.cuh"
#include "entries.cuh"

namespace tkpy::fft_conv {

// Rows begin .. end - 1 of all, those of a channel one after another, of one of so many clusters.
struct ClusterTasks {
  int begin, end;
  TK_DEVICE ClusterTasks(int rows) {
    const int clusters = static_cast<int>(gridDim.x) / kRowCluster, which = static_cast<int>(blockIdx.x) / kRowCluster;
    begin = rows / clusters * which + min(which, rows % clusters);
    end = begin + rows / clusters + (which < rows % clusters);
  }
};

// Of which the compiler does not know that it is the same every time: addresses of all tables and factors of all frequencies
// would else be kept from row to row, more than there are registers.
TK_DEVICE const void* again(const void* tables) {
  int nothing = 0;
  ptx::hold(nothing);
  return static_cast<const uint4*>(tables) + nothing;
}
TK_DEVICE int rank_again() {
  int rank = static_cast<int>(blockIdx.x) % kRowCluster;
  ptx::hold(rank);
  return rank;
}

// The spectrum of a channel into this CTA's memory, where it is for all its rows; from the first of these to global memory
// too, where it is to be kept.
template <int Index>
TK_DEVICE void cluster_taps(const ClusterParams& p, const void* memory, int batch, int channel) {
  using F = Transform<Index>;
  const F transform(memory, again(p.tables));
  const ClusterRow<Index> cluster(transform, rank_again());
  const ClusterSpectrum<Index> spectrum(transform);
  const auto kept = [&](const void* spectra) {
    return static_cast<const float4*>(spectra) + (static_cast<long long>(channel) * kRowCluster + cluster.rank) * (F::M / 2);
  };
  if (p.spectrum)
    spectrum.load(kept(p.spectrum));
  else
    spectrum.make(cluster, ChannelTaps(p.filter, channel, kRowCluster * F::M),
                  p.filter.spectrum && batch == 0 ? const_cast<float4*>(kept(p.filter.spectrum)) : nullptr);
}

template <int Index>
TK_DEVICE void cluster_row(const ClusterParams& p, const void* memory, int batch, int channel) {
  const Transform<Index> transform(memory, again(p.tables));
  const ClusterRow<Index> cluster(transform, rank_again());
  const auto row = [&](const Rows& rows) { return Row(rows, batch, channel, p.length, p.half != 0); };
  cluster.to_values(Gated{row(p.u), row(p.pre)});
  filter(transform, ClusterSpectrum<Index>(transform), p.correlate != 0);
  transform.from_values();
  const ClusterRow<Index> back(transform, rank_again());
  back.last();
  float2 z[4][kRowCluster];
  float x[4][8];
  back.gather(z);
  back.as_rows(x, z);
  back.store(row(p.out), row(p.post), x);
  if (p.out2.data) back.store(row(p.out2), row(p.post2), x);
}

template <int Index>
TK_DEVICE void cluster_rows(const ClusterParams& p, const void* memory) {
  const ClusterTasks tasks(p.batch * p.channels);
  ClusterRow<Index>::open();
#pragma unroll 1
  for (int task = tasks.begin; task < tasks.end; ++task) {
    const int batch = task % p.batch, channel = task / p.batch;
    if (task == tasks.begin || batch == 0) cluster_taps<Index>(p, memory, batch, channel);
    cluster_row<Index>(p, memory, batch, channel);
  }
  ClusterRow<Index>::finish();
}

}  // namespace tkpy::fft_conv

#define TKPY_CLUSTER(M, INDEX)                                                                                    \
  TKPY_ENTRY(fft_conv_cluster_##M, ClusterParams, cluster_rows<INDEX>(p, memory), TKPY_PLAN_THREADS(INDEX),       \
             tkpy::fft_conv::row_cluster_resident(tkpy::fft_conv::kPlans[INDEX]))
TKPY_EVERY_CLUSTERED(TKPY_CLUSTER)
