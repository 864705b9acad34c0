// fft_conv of rows longer than a CTA holds, or a cluster of them (cluster.cu): N0 M' complex points, N0 = 16 .. 256 of
// M' = 2048, 4096 or 16384
//   fft_conv_long_in          u, pre --> work: over n0, at frequencies j0 + 1/4, times w^(n' (j0 + 1/4))
//   fft_conv_long_inner_<M'>  work --> work: a row (b, h, j0) of M' through `first` .. `last` at whole frequencies, complex
//   fft_conv_long_out         work --> out: the conjugate factors, over j0 back, gates
// in   u, pre, post [B,H,L] bf16 or fp16 | spectrum [H,N0,M'] complex f32, skip included      out  y, and out2 by post2
// work [B,H,N0,2,M'] f32: 8 bytes a sample, four times. Overlap and save would multiply every chunk's values with those of
//      all chunks of the filter before it: 8 L / M' bytes a sample out of L2 for filters as long as the row
// in, out  a CTA to 64 columns n' of a row: staged in shared memory in two bf16 terms (rows n0 or j0 of 128 bytes, chunks
//      of 16 permuted by the row), __syncthreads, then warp w takes the tiles of 16 rows w, w + 8, .. of the product;
//      fragments of the matrix come out of L2, 64 columns share them. Twiddles by sincospi: exact phases below 2^24
// precision  as in transform.cuh, work in float
// cost  bytes 36 L a row and the gates (in 10, inner 16, out 10), which is what one passage there and one back take:
//       complex floats, half the spectrum of a padded real row, written and read; flops 24 N0 a sample for in and out together
#include "entries.cuh"
#include "filter.cuh"
#include "outer.cuh"

namespace tkpy::fft_conv {

TK_DEVICE void long_in(const LongParams& p, const void* memory) {
  const OuterTask t(p);
  const OuterStrip strip{ptx::shared_address(memory), p.outer};
  const Gated v{t.row(p, p.u), t.row(p, p.pre)};
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < 8 * p.outer; i += 32 * kOuterWarps) {
    float x[8];
    v.load(x, i / 8 * p.inner + t.column + i % 8 * 8);
    strip.put(0, 1, i / 8, i % 8, x);
  }
  __syncthreads();
#pragma unroll 1
  for (int m = warp_index(); m < p.outer / 8; m += kOuterWarps) {
    float acc[8][4];
    strip.product<false>(acc, p.matrix, m);
    put_work(p, t, acc, m);
  }
}

template <int Index>
TK_DEVICE void long_inner(const LongParams& p, const void* memory) {
  using F = Transform<Index>;
  const F transform(memory, p.tables);
  const int batch = static_cast<int>(blockIdx.x) % p.batch, group = static_cast<int>(blockIdx.x) / p.batch;
  float* work = p.work + (static_cast<long long>(batch) * p.channels * p.outer + group) * 2 * F::M;
  transform.template first<true>([&](float(&x)[8], int im, int n) { load_floats(x, work + im * F::M + n); });
  transform.to_values();
  filter(transform, static_cast<const float4*>(p.spectrum) + static_cast<long long>(group) * (F::M / 2), p.correlate != 0);
  transform.from_values();
  transform.last([&](const float2(&z)[2], int n) { put_complex<F::M>(work, z, n); });
}

TK_DEVICE void long_out(const LongParams& p, const void* memory) {
  const OuterTask t(p);
  const OuterStrip strip{ptx::shared_address(memory), p.outer};
  get_work(p, t, strip);
  __syncthreads();
  const Row post = t.row(p, p.post), post2 = t.row(p, p.post2), out = t.row(p, p.out), out2 = t.row(p, p.out2);
  const int quad = lane_index() % 4;
#pragma unroll 1
  for (int m = warp_index(); m < p.outer / 16; m += kOuterWarps) {
    float acc[8][4];
    strip.product<true>(acc, p.matrix, m);
#pragma unroll
    for (int s = 0; s < 8; s += 2) {
      float x[8];
      gather_row(x, acc[s], acc[s + 1]);
      const int n0 = 16 * m + lane_index() / 4 + 8 * (quad / 2), n = n0 * p.inner + t.column + 8 * (s + quad % 2);
      if (n >= p.length) continue;
      store_gated(out, post, x, n);
      if (out2.data) store_gated(out2, post2, x, n);
    }
  }
}

}  // namespace tkpy::fft_conv

#define TKPY_INNER(M, INDEX) \
  TKPY_ENTRY(fft_conv_long_inner_##M, LongParams, long_inner<INDEX>(p, memory), TKPY_PLAN_THREADS(INDEX))
TKPY_ENTRY(fft_conv_long_in, LongParams, long_in(p, memory), TKPY_OUTER_THREADS)
TKPY_ENTRY(fft_conv_long_out, LongParams, long_out(p, memory), TKPY_OUTER_THREADS)
TKPY_EVERY_INNER(TKPY_INNER)
