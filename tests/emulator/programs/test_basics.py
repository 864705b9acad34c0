"""Whole CUDA programs of the usual kinds, against numpy; where they run: conftest.py."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import aligned

from tkpy.emulator import Module, Run

Compile = Callable[..., Module]
Runner = Callable[..., Run]


REDUCE = r"""
extern "C" __global__ void tree(float* out, const float* x, int n) {
  __shared__ float s[256];
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  s[threadIdx.x] = v;
  __syncthreads();
  for (int k = blockDim.x / 2; k > 0; k /= 2) {
    if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = s[0];
}
extern "C" __global__ void shuffle(float* out, const float* x, int n) {
  __shared__ float s[32];
  float v = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[i];
  for (int k = 16; k; k /= 2) v += __shfl_xor_sync(~0u, v, k);
  if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < blockDim.x / 32 ? s[threadIdx.x] : 0;
    for (int k = 16; k; k /= 2) v += __shfl_down_sync(~0u, v, k);
    if (threadIdx.x == 0) *out = v;
  }
}
extern "C" __global__ void one_pass(float* out, float* partial, unsigned* ticket, const float* x, int n) {
  __shared__ float s[128];
  __shared__ bool last;
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  s[threadIdx.x] = v;
  __syncthreads();
  for (int k = 64; k > 0; k /= 2) { if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k]; __syncthreads(); }
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = s[0];
    __threadfence();
    last = atomicAdd(ticket, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) { float t = 0; for (int b = 0; b < gridDim.x; ++b) t += ((volatile float*)partial)[b]; *out = t; }
}
"""


@pytest.mark.parametrize("n", [1, 31, 256, 1000, 4099])
def test_reductions(runner: Runner, n: int) -> None:
    x = np.random.default_rng(n).integers(-8, 8, n).astype(np.float32)
    out = np.full(3, np.nan, np.float32)
    runner(REDUCE, "tree", grid=3, block=256, args=[out, x, n])
    assert out.sum() == x.sum()
    runner(REDUCE, "shuffle", block=128, args=[out, x, n])
    assert out[0] == x.sum()
    partial, ticket = np.full(5, np.nan, np.float32), np.zeros(1, np.uint32)
    runner(REDUCE, "one_pass", grid=5, block=128, args=[out, partial, ticket, x, n])
    assert out[0] == x.sum()


SCAN = r"""
extern "C" __global__ void scan(int* x) {
  __shared__ int s[2][512];
  int t = threadIdx.x, p = 0;
  s[0][t] = x[t];
  __syncthreads();
  for (int k = 1; k < blockDim.x; k *= 2) {
    s[1 - p][t] = s[p][t] + (t >= k ? s[p][t - k] : 0);
    p = 1 - p;
    __syncthreads();
  }
  x[t] = s[p][t];
}
"""


def test_scan(runner: Runner) -> None:
    for n in (1, 33, 512):
        x = np.random.default_rng(n).integers(-100, 100, n).astype(np.int32)
        want = np.cumsum(x)
        runner(SCAN, "scan", block=n, args=[x])
        assert np.array_equal(x, want)


TRANSPOSE = r"""
template <int pad> __device__ void body(float* out, const float* in, int n) {
  __shared__ float tile[32][32 + pad];
  int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
  tile[threadIdx.y][threadIdx.x] = in[y * n + x];
  __syncthreads();
  x = blockIdx.y * 32 + threadIdx.x; y = blockIdx.x * 32 + threadIdx.y;
  out[y * n + x] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void padded(float* out, const float* in, int n) { body<1>(out, in, n); }
extern "C" __global__ void conflicting(float* out, const float* in, int n) { body<0>(out, in, n); }
extern "C" __global__ void stride(float* out, int k) {
  __shared__ volatile float s[1024];
  s[threadIdx.x * k % 1024] = 1;
  out[threadIdx.x] = 1;
}
extern "C" __global__ void wide(float4* out) {
  __shared__ float4 s[64];
  s[threadIdx.x] = make_float4(threadIdx.x, 1, 2, 3);
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}
"""


def test_transpose_and_its_bank_conflicts(runner: Runner) -> None:
    x = aligned(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    for name, ways in (("padded", 1), ("conflicting", 32)):
        out = aligned(x * 0)
        run = runner(TRANSPOSE, name, grid=(2, 2), block=(32, 32), args=[out, x, 64])
        assert np.array_equal(out, x.T)
        loads = run.counters.select("ld.shared")
        assert loads.shared_requests == 4 * 32
        assert loads.shared_wavefronts == ways * loads.shared_requests
        stores = run.counters.select("st.shared")
        assert stores.shared_wavefronts == stores.shared_requests
        # 32 floats in a row: 4 sectors a warp, in both directions
        assert run.counters.select("st.global").global_sectors == 4 * run.counters.select("st.global").global_requests


@pytest.mark.parametrize("k, ways", [(1, 1), (2, 2), (3, 1), (4, 4), (8, 8), (16, 16), (32, 32), (33, 1)])
def test_conflicts_by_stride(compile_cuda: Compile, k: int, ways: int) -> None:
    out = np.zeros(32, np.float32)
    run = compile_cuda(TRANSPOSE).launch("stride", block=32, args=[out, k])
    assert run.counters.select("st.volatile.shared").shared_wavefronts == ways


def test_wide_accesses_take_four_passes(runner: Runner) -> None:
    out = np.zeros((32, 4), np.float32)
    run = runner(TRANSPOSE, "wide", block=32, args=[out])
    assert run.counters.select("ld.shared.v4").shared_wavefronts == 4
    assert np.array_equal(out[:, 0], np.arange(32) ^ 1)


HISTOGRAM = r"""
extern "C" __global__ void histogram(unsigned* out, const unsigned char* x, int n) {
  __shared__ unsigned bins[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[x[i]], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) if (bins[i]) atomicAdd(&out[i], bins[i]);
}
extern "C" __global__ void extremes(int* lo, int* hi, unsigned long long* sum, const int* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) { atomicMin(lo, x[i]); atomicMax(hi, x[i]); atomicAdd(sum, (unsigned long long)(long long)x[i]); }
}
extern "C" __global__ void locked(int* counter, int* lock) {
  for (bool done = false; !done;) {
    if (atomicCAS(lock, 0, 1) == 0) { int v = *(volatile int*)counter; *(volatile int*)counter = v + 1; __threadfence(); atomicExch(lock, 0); done = true; }
  }
}
"""


def test_histogram_and_atomics(runner: Runner) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, 3001).astype(np.uint8)
    v = rng.integers(-(2**31), 2**31, 500).astype(np.int32)
    out = np.zeros(256, np.uint32)
    runner(HISTOGRAM, "histogram", grid=3, block=96, args=[out, x, len(x)])
    assert np.array_equal(out, np.bincount(x, minlength=256))
    lo, hi, total = np.full(1, 2**31 - 1, np.int32), np.full(1, -(2**31), np.int32), np.zeros(1, np.int64)
    runner(HISTOGRAM, "extremes", grid=4, block=128, args=[lo, hi, total, v, len(v)])
    assert (lo[0], hi[0], total[0]) == (v.min(), v.max(), v.astype(np.int64).sum())


def test_spin_lock_between_lanes_of_a_warp(runner: Runner) -> None:
    counter, lock = np.zeros(1, np.int32), np.zeros(1, np.int32)
    runner(HISTOGRAM, "locked", grid=2, block=64, args=[counter, lock])
    assert counter[0] == 128


DIVERGENCE = r"""
__device__ __noinline__ int collatz(unsigned n) { int k = 0; while (n != 1) { n = n % 2 ? 3 * n + 1 : n / 2; ++k; } return k; }
__device__ __noinline__ int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
struct Pair { double a; int b; };
__device__ __noinline__ Pair swap_up(Pair p, short s) { Pair q; q.a = p.b + s; q.b = (int)p.a; return q; }
extern "C" __global__ void puzzles(int* out) {
  int t = threadIdx.x, v = 0;
  out[t] = collatz(t + 1);
  if (t % 3 == 0) v = fib(t % 12); else if (t % 3 == 1) { for (int i = 0; i < t; ++i) { if (i % 7 == 5) continue; if (i > 40) break; v += i; } }
  else { switch (t % 8) { case 0: v = 1; case 2: v += 3; break; case 5: v = 7; break; default: v = -t; } }
  out[blockDim.x + t] = v;
  Pair p = {t * 1.5, t}; p = swap_up(p, (short)-t);
  out[2 * blockDim.x + t] = (int)p.a * 1000 + p.b;
}
typedef int (*Fn)(int, int);
__device__ int add(int a, int b) { return a + b; }
__device__ int mul(int a, int b) { return a * b; }
__device__ Fn table[2] = {add, mul};
extern "C" __global__ void indirect(int* out) { out[threadIdx.x] = table[threadIdx.x % 2](threadIdx.x, 3); }
extern "C" __global__ void local_array(int* out, const int* index, int n) {
  int a[16];
  for (int i = 0; i < 16; ++i) a[i] = i * i + threadIdx.x;
  for (int i = 0; i < n; ++i) { int k = index[i] & 15; a[k] += a[(k + 1) & 15]; }
  int s = 0;
  for (int i = 0; i < 16; ++i) s ^= a[i] * (i + 1);
  out[threadIdx.x] = s;
}
__constant__ float weights[4] = {1, 2, 3, 4};
extern "C" __global__ void constants(float* out) { out[threadIdx.x] = weights[threadIdx.x % 4]; }
#include <cstdio>
extern "C" __global__ void speak(float x) { if (threadIdx.x < 2) printf("lane %d: %.2f %s %lld\n", threadIdx.x, x, "text", 1LL << 40); }
extern "C" __global__ void reconverge(int* out) {
  int v = threadIdx.x;
  if (v & 1) v *= 3; else v += 5;
  out[threadIdx.x] = __popc(__ballot_sync(~0u, v > 40)) + 100 * __popc(__activemask());
}
extern "C" __global__ void halves(unsigned* out) {
  unsigned m = threadIdx.x < 16 ? 0xffff : 0xffff0000;
  out[threadIdx.x] = __reduce_add_sync(m, threadIdx.x) + (__match_any_sync(m, threadIdx.x % 4) << 8 & 0);
}
"""


def collatz(n: int) -> int:
    k = 0
    while n != 1:
        n = 3 * n + 1 if n % 2 else n // 2
        k += 1
    return k


def puzzle(t: int) -> int:
    if t % 3 == 0:
        a, b = 0, 1
        for _ in range(t % 12):
            a, b = b, a + b
        return a
    if t % 3 == 1:
        v = 0
        for i in range(t):
            if i % 7 == 5:
                continue
            if i > 40:
                break
            v += i
        return v
    return {0: 4, 2: 3, 5: 7}.get(t % 8, -t)


def test_divergence_and_calls(runner: Runner) -> None:
    n = 96
    out = np.zeros((3, n), np.int32)
    runner(DIVERGENCE, "puzzles", block=n, args=[out])
    assert out[0].tolist() == [collatz(t + 1) for t in range(n)]
    assert out[1].tolist() == [puzzle(t) for t in range(n)]
    assert out[2].tolist() == [int(t * 1.5) for t in range(n)]
    row = np.zeros(64, np.int32)
    runner(DIVERGENCE, "indirect", block=64, args=[row])
    assert row.tolist() == [t * 3 if t % 2 else t + 3 for t in range(64)]


def test_local_memory_constants_printf(runner: Runner) -> None:
    index = np.random.default_rng(1).integers(0, 16, 50).astype(np.int32)
    out = np.zeros(40, np.int32)
    runner(DIVERGENCE, "local_array", block=40, args=[out, index, 50])
    for t in range(40):
        a = [i * i + t for i in range(16)]
        for k in index:
            a[k] += a[(k + 1) & 15]
        s = 0
        for i, v in enumerate(a):
            s ^= v * (i + 1)
        assert int(np.int64(s).astype(np.int32)) == out[t]
    w = np.zeros(8, np.float32)
    runner(DIVERGENCE, "constants", block=8, args=[w])
    assert w.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    run = runner(DIVERGENCE, "speak", block=32, args=[2.5])
    assert run.output == "".join(f"lane {i}: 2.50 text {1 << 40}\n" for i in range(2))


def test_reconvergence_and_partial_masks(runner: Runner) -> None:
    out = np.zeros(32, np.int32)
    runner(DIVERGENCE, "reconverge", block=32, args=[out])
    want = sum((v * 3 if v & 1 else v + 5) > 40 for v in range(32))
    assert (out == want + 3200).all()
    runner(DIVERGENCE, "halves", block=32, args=[out])
    assert out.tolist() == [sum(range(16))] * 16 + [sum(range(16, 32))] * 16


HALF = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void gelu16(__half* y, const __half* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) { float v = __half2float(x[i]); y[i] = __float2half(v / (1.f + expf(-1.702f * v))); }
}
extern "C" __global__ void fma2(__nv_bfloat162* y, const __nv_bfloat162* a, const __nv_bfloat162* b, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = __hfma2(a[i], b[i], y[i]);
}
extern "C" __global__ void softmax(float* y, const float* x, int n) {
  const float* row = x + blockIdx.x * n;
  float m = -INFINITY, s = 0;
  for (int i = threadIdx.x; i < n; i += 32) m = fmaxf(m, row[i]);
  for (int k = 16; k; k /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, k));
  for (int i = threadIdx.x; i < n; i += 32) s += __expf(row[i] - m);
  for (int k = 16; k; k /= 2) s += __shfl_xor_sync(~0u, s, k);
  for (int i = threadIdx.x; i < n; i += 32) y[blockIdx.x * n + i] = __expf(row[i] - m) / s;
}
extern "C" __global__ void special(double* y, const double* x, int n) {
  int i = threadIdx.x;
  if (i < n) { y[i] = exp(x[i]); y[n + i] = pow(fabs(x[i]), 1.7); y[2 * n + i] = sin(x[i]); y[3 * n + i] = log1p(fabs(x[i])); y[4 * n + i] = x[i] / 3.0; }
}
"""


def test_half_precision_math(runner: Runner) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(501).astype(np.float16)
    y = np.zeros_like(x)
    runner(HALF, "gelu16", within=1e-3, grid=4, block=128, args=[y, x, 501])
    v = x.astype(np.float64)
    assert np.allclose(y, v / (1 + np.exp(-1.702 * v)), rtol=2e-3, atol=1e-4)
    a, b, c = (rng.standard_normal(64).astype(ml_dtypes.bfloat16) for _ in range(3))
    want = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(ml_dtypes.bfloat16)
    runner(HALF, "fma2", block=32, args=[c.view(np.uint16), a.view(np.uint16), b.view(np.uint16), 32])
    assert np.array_equal(c, want)


def test_softmax_and_double_functions(runner: Runner) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 77)).astype(np.float32) * 4
    y = np.zeros_like(x)
    runner(HALF, "softmax", within=1e-5, grid=3, block=32, args=[y, x, 77])
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    assert np.allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5)
    d = rng.standard_normal(32) * 10
    out = np.zeros((5, 32))
    runner(HALF, "special", within=1e-13, block=32, args=[out, d, 32])
    want = [np.exp(d), np.abs(d) ** 1.7, np.sin(d), np.log1p(np.abs(d)), d / 3.0]
    assert np.allclose(out, want, rtol=1e-13)


BARRIERS = r"""
extern "C" __global__ void producer_consumer(int* out, int rounds) {
  __shared__ int slot[32];
  int lane = threadIdx.x % 32, sum = 0;
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x < 32) {
      asm volatile("bar.sync 1, 64;" ::: "memory");
      slot[lane] = r * 100 + lane;
      asm volatile("bar.arrive 2, 64;" ::: "memory");
    } else {
      asm volatile("bar.arrive 1, 64;" ::: "memory");
      asm volatile("bar.sync 2, 64;" ::: "memory");
      sum += slot[31 - lane];
    }
  }
  if (threadIdx.x >= 32) out[lane] = sum;
}
extern "C" __global__ void votes(int* out) {
  int a = __syncthreads_count(threadIdx.x % 3 == 0), b = __syncthreads_and(threadIdx.x < 1000), c = __syncthreads_or(threadIdx.x == 77);
  out[threadIdx.x] = a + 1000 * b + 10000 * c;
}
extern "C" __global__ void early_exit(int* out) {
  if (threadIdx.x >= 64) return;
  __shared__ int s[64];
  s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) neighbours(int* out) {
  __shared__ int s[32];
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  s[threadIdx.x] = rank * 1000 + threadIdx.x;
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
  unsigned a = __cvta_generic_to_shared(&s[31 - threadIdx.x]), r; int v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank ^ 1));
  asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(v) : "r"(r) : "memory");
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
  out[blockIdx.x * 32 + threadIdx.x] = v;
}
"""


def test_barriers(runner: Runner) -> None:
    out = np.zeros(128, np.int32)
    runner(BARRIERS, "producer_consumer", block=64, args=[out, 7])
    assert out[:32].tolist() == [sum(r * 100 + 31 - lane for r in range(7)) for lane in range(32)]
    runner(BARRIERS, "votes", block=128, args=[out])
    assert (out == 43 + 1000 + 10000).all()
    runner(BARRIERS, "early_exit", block=128, args=[out])
    assert out[:64].tolist() == list(range(63, -1, -1))


def test_clusters_read_each_others_shared_memory(runner: Runner) -> None:
    out = np.zeros(128, np.int32)
    runner(BARRIERS, "neighbours", grid=4, block=32, args=[out])
    want = [(1 - b % 2) * 1000 + 31 - t for b in range(4) for t in range(32)]
    assert out.tolist() == want


def test_same_seed_same_run_whatever_the_host_threads(compile_cuda: Compile) -> None:
    histogram, reduce = compile_cuda(HISTOGRAM), compile_cuda(REDUCE)
    x = aligned(np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8))
    y = aligned(x.astype(np.float32))
    runs = []
    for threads in (1, 2, 2):
        bins, sums = aligned(np.zeros(256, np.uint32)), aligned(np.zeros(8, np.float32))
        a = histogram.launch("histogram", grid=8, block=64, args=[bins, x, len(x)], seed=3, threads=threads)
        b = reduce.launch("tree", grid=8, block=256, args=[sums, y, len(y)], seed=3, threads=threads)
        runs.append((bins.tolist(), sums.tolist(), [(r.warp_instructions, r.counters.json()) for r in (a, b)]))
    assert runs[0] == runs[1] == runs[2]
