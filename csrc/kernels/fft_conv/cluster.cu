// fft_conv of rows longer than a CTA holds that never leave the chip: 8 M' complex points, M' = 4096 or 8192, by a
// cluster of 8 CTAs                                          (long.cu takes longer rows, and fewer than fill the machine)
//   fft_conv_cluster_<M'>   y = post conv(v, k, k_reverse), v = pre u      per (batch, channel) row of L <= 8 M' samples
// in   u, pre, post [B,H,L] bf16 or fp16 | spectrum [H,8,M'] complex f32, skip included (long_filter.cu)
// out  y of u's type; with post2 and out2 a second gate of the same convolution
// grid a cluster a row, the batch inside the channels: rows of one channel find its spectrum in L2
// flow gl u, pre --16 B--> registers -> v -> 8 points over n0 -> shared memory of CTA j0 | first | second | third, times
//      spectrum, third back | second back | last -> in place | from all CTAs -> 8 points back -> gates --16 B--> gl;
//      outer | are cluster barriers. cluster.cuh has the exchange, transform.cuh what lies between
// precision  as in transform.cuh; on the way back the exchange is of floats, on the way there of two bf16 terms
// shared memory  8 bytes a point: 32 or 64 KiB a CTA, of which a multiprocessor holds 4 or 2. 128 KiB would hold rows of 131072, but one
//      CTA a multiprocessor, with nothing to do while it waits for the others: long.cu is faster then
// cost bytes 2 (2 + gates) L a row and 64 M' a channel; 14 a point between CTAs; flops 24 M' (2 N1 + 2 N2 + 2 N3) a CTA
//      of tensor cores, about 30 a sample for the factor of 8
#include "cluster.cuh"
#include "entries.cuh"
#include "filter.cuh"

namespace tkpy::fft_conv {

template <int Index>
TK_DEVICE void cluster_row(const LongParams& p, const void* memory) {
  using F = Transform<Index>;
  const F transform(memory, p.tables);
  const int rank = static_cast<int>(blockIdx.x) % kRowCluster, task = static_cast<int>(blockIdx.x) / kRowCluster;
  const int batch = task % p.batch, channel = task / p.batch;
  const auto row = [&](const Rows& rows) { return Row(rows, batch, channel, p.length, p.half != 0); };
  const ClusterRow<Index> cluster(transform, rank);
  cluster.enter();
  cluster.scatter(Gated{row(p.u), row(p.pre)});
  cluster.first();
  transform.to_values();
  filter(transform, static_cast<const float4*>(p.spectrum) + (static_cast<long long>(channel) * kRowCluster + rank) * (F::M / 2),
         p.correlate != 0);
  transform.from_values();
  cluster.last();
  float2 z[4][kRowCluster];
  float x[4][8];
  cluster.gather(z);
  cluster.as_rows(x, z);
  cluster.store(row(p.out), row(p.post), x);
  if (p.out2.data) cluster.store(row(p.out2), row(p.post2), x);
  cluster.finish();
}

}  // namespace tkpy::fft_conv

#define TKPY_CLUSTER(M, INDEX)                                                                                    \
  TKPY_ENTRY(fft_conv_cluster_##M, LongParams, cluster_row<INDEX>(p, memory), TKPY_PLAN_THREADS(INDEX),           \
             512 / TKPY_PLAN_THREADS(INDEX))
TKPY_EVERY_CLUSTERED(TKPY_CLUSTER)
