"""wmma of every shape, type and layout through CUDA's nvcuda::wmma, in global and in shared memory, against numpy."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from tkpy.emulator import Module

Compile = Callable[..., Module]

SOURCE = r"""
#include <mma.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
using namespace nvcuda;

template <int M, int N, int K, class F, class S, class C, class D, class LA, class LB, bool acol, bool bcol>
__device__ void body(D* d, const S* a, const S* b, const C* c, int lda, int ldb, int ldc, int shared, bool ccol) {
  __shared__ __align__(128) unsigned char memory[16384];
  const S *pa = a, *pb = b;
  const C* pc = c;
  D* pd = d;
  if (shared) {
    S* sa = reinterpret_cast<S*>(memory);
    S* sb = reinterpret_cast<S*>(memory + 4096);
    C* sc = reinterpret_cast<C*>(memory + 8192);
    for (int i = threadIdx.x; i < (acol ? K : M) * lda; i += 32) sa[i] = a[i];
    for (int i = threadIdx.x; i < (bcol ? N : K) * ldb; i += 32) sb[i] = b[i];
    for (int i = threadIdx.x; i < (ccol ? N : M) * ldc; i += 32) sc[i] = c[i];
    __syncthreads();
    pa = sa; pb = sb; pc = sc; pd = reinterpret_cast<D*>(memory + 12288);
  }
  wmma::fragment<wmma::matrix_a, M, N, K, F, LA> fa;
  wmma::fragment<wmma::matrix_b, M, N, K, F, LB> fb;
  wmma::fragment<wmma::accumulator, M, N, K, C> fc;
  wmma::fragment<wmma::accumulator, M, N, K, D> fd;
  wmma::load_matrix_sync(fa, pa, lda);
  wmma::load_matrix_sync(fb, pb, ldb);
  wmma::load_matrix_sync(fc, pc, ldc, ccol ? wmma::mem_col_major : wmma::mem_row_major);
  wmma::mma_sync(fd, fa, fb, fc);
  wmma::store_matrix_sync(pd, fd, ldc, ccol ? wmma::mem_col_major : wmma::mem_row_major);
  if (shared) {
    __syncthreads();
    for (int i = threadIdx.x; i < (ccol ? N : M) * ldc; i += 32)
      if (i % ldc < (ccol ? M : N)) d[i] = pd[i];
  }
}
#define LAYOUT(name, M, N, K, F, S, C, D, la, lb, acol, bcol)                                                        \
  extern "C" __global__ void name##_##la##_##lb(D* d, const S* a, const S* b, const C* c, int lda, int ldb, int ldc, \
                                                int shared, int ccol) {                                              \
    if (ccol) body<M, N, K, F, S, C, D, wmma::la, wmma::lb, acol, bcol>(d, a, b, c, lda, ldb, ldc, shared, true);    \
    else body<M, N, K, F, S, C, D, wmma::la, wmma::lb, acol, bcol>(d, a, b, c, lda, ldb, ldc, shared, false);        \
  }
#define KERNELS(name, M, N, K, F, S, C, D)                                     \
  LAYOUT(name, M, N, K, F, S, C, D, row_major, row_major, false, false)        \
  LAYOUT(name, M, N, K, F, S, C, D, row_major, col_major, false, true)         \
  LAYOUT(name, M, N, K, F, S, C, D, col_major, row_major, true, false)         \
  LAYOUT(name, M, N, K, F, S, C, D, col_major, col_major, true, true)
#define WIDE(M, N)                                                             \
  KERNELS(f16_f32_##M##_##N, M, N, 16, half, half, float, float)               \
  KERNELS(f16_f16_##M##_##N, M, N, 16, half, half, half, half)                 \
  KERNELS(bf16_f32_##M##_##N, M, N, 16, __nv_bfloat16, __nv_bfloat16, float, float) \
  KERNELS(s8_s32_##M##_##N, M, N, 16, signed char, signed char, int, int)      \
  KERNELS(u8_s32_##M##_##N, M, N, 16, unsigned char, unsigned char, int, int)
WIDE(16, 16) WIDE(32, 8) WIDE(8, 32)
KERNELS(f64_f64_8_8, 8, 8, 4, double, double, double, double)
KERNELS(tf32_f32_16_16, 16, 16, 8, wmma::precision::tf32, float, float, float)
"""

TYPES = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "s8": np.int8, "u8": np.uint8, "f64": np.float64,
    "tf32": np.float32, "f32": np.float32, "s32": np.int32,
}  # fmt: skip
CASES = [
    (a, c, m, n, 16)
    for m, n in ((16, 16), (32, 8), (8, 32))
    for a, c in (("f16", "f32"), ("f16", "f16"), ("bf16", "f32"), ("s8", "s32"), ("u8", "s32"))
]
CASES += [("f64", "f64", 8, 8, 4), ("tf32", "f32", 16, 16, 8)]


def placed(values: np.ndarray, column_major: bool, pad: int, at: int = 256) -> tuple[np.ndarray, int]:
    """The matrix in 256-byte aligned memory, its rows (or columns) `pad` elements further apart than they are long."""
    lines = values.T if column_major else values
    ld = lines.shape[1] + pad
    room = np.zeros(lines.shape[0] * ld * values.itemsize + at, np.uint8)
    start = -room.ctypes.data % at
    held = room[start : start + lines.shape[0] * ld * values.itemsize].view(values.dtype).reshape(lines.shape[0], ld)
    held[:, : lines.shape[1]] = lines
    return held, ld


def plain(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


@pytest.mark.parametrize("a, c, m, n, k", CASES)
def test_every_shape_type_and_layout(compile_cuda: Compile, a: str, c: str, m: int, n: int, k: int) -> None:
    module = compile_cuda(SOURCE)
    rng = np.random.default_rng(m + n)
    for layouts in range(16):
        acol, bcol, ccol, shared = (bool(layouts >> i & 1) for i in range(4))
        low, high = (0, 250) if a == "u8" else (-8, 9)
        # small integers: every format, product and sum is exact, so the result is too
        av, bv, cv = (rng.integers(low, high, s).astype(TYPES[t]) for s, t in (((m, k), a), ((k, n), a), ((m, n), c)))
        step = 16 // np.dtype(TYPES[a]).itemsize
        (ah, lda), (bh, ldb) = placed(av, acol, step * (k != 4)), placed(bv, bcol, step * (k != 4))
        (ch, ldc), (dh, _) = (placed(v, ccol, 16 // cv.itemsize) for v in (cv, np.zeros_like(cv) - 1))
        name = f"{a}_{c}_{m}_{n}_{'col' if acol else 'row'}_major_{'col' if bcol else 'row'}_major"
        args = [plain(dh), plain(ah), plain(bh), plain(ch), lda, ldb, ldc, int(shared), int(ccol)]
        run = module.launch(name, block=32, args=args, seed=layouts)
        run.raise_on_findings()
        want = av.astype(np.float64) @ bv.astype(np.float64) + cv.astype(np.float64)
        got = (dh[:, : (m if ccol else n)].T if ccol else dh[:, :n]).astype(np.float64)
        assert np.array_equal(got, want.astype(cv.dtype).astype(np.float64)), name
        padding = dh[:, (m if ccol else n) :]
        assert (padding.astype(np.float64) == 0).all()  # what lies between the rows is not touched


BITS = r"""
#include <mma.h>
using namespace nvcuda;
template <class T, int K> __device__ void multiply(int* d, const void* a, const void* b) {
  wmma::fragment<wmma::matrix_a, 8, 8, K, T, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 8, 8, K, T, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 8, 8, K, int> fc;
  wmma::fill_fragment(fc, 5);
  wmma::load_matrix_sync(fa, a, K);
  wmma::load_matrix_sync(fb, b, K);
  if constexpr (K == 128) wmma::bmma_sync(fc, fa, fb, fc, wmma::experimental::bmmaBitOpXOR);
  else wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(d, fc, 8, wmma::mem_row_major);
}
extern "C" __global__ void s4(int* d, const void* a, const void* b) { multiply<wmma::experimental::precision::s4, 32>(d, a, b); }
extern "C" __global__ void u4(int* d, const void* a, const void* b) { multiply<wmma::experimental::precision::u4, 32>(d, a, b); }
extern "C" __global__ void b1(int* d, const void* a, const void* b) { multiply<wmma::experimental::precision::b1, 128>(d, a, b); }
"""


@pytest.mark.parametrize("name", ["s4", "u4", "b1"])
def test_elements_narrower_than_a_byte(compile_cuda: Compile, name: str) -> None:
    rng = np.random.default_rng(3)
    a, b = (placed(rng.integers(0, 256, (8, 16)).astype(np.uint8), False, 0)[0] for _ in range(2))
    d = placed(np.zeros((8, 8), np.int32), False, 0)[0]

    def wide(x: np.ndarray) -> np.ndarray:
        if name == "b1":
            return np.unpackbits(x, axis=1, bitorder="little").astype(np.int64)
        nibbles = np.stack([x & 15, x >> 4], axis=2).reshape(8, 32).astype(np.int64)
        return np.where((nibbles > 7) & (name == "s4"), nibbles - 16, nibbles)

    compile_cuda(BITS).launch(name, block=32, args=[d, a, b]).raise_on_findings()
    p, q = wide(a), wide(b)
    want = (p[:, None] != q[None]).sum(2) if name == "b1" else p @ q.T
    assert np.array_equal(d, want + 5)


def test_saturation(compile_cuda: Compile) -> None:
    source = r"""
#include <mma.h>
using namespace nvcuda;
extern "C" __global__ void sum(int* d, const signed char* a, int c, bool saturate) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, signed char, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, signed char, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, int> fc;
  wmma::fill_fragment(fc, c);
  wmma::load_matrix_sync(fa, a, 16);
  wmma::load_matrix_sync(fb, a, 16);
  if (saturate) wmma::mma_sync(fc, fa, fb, fc, true); else wmma::mma_sync(fc, fa, fb, fc, false);
  wmma::store_matrix_sync(d, fc, 16, wmma::mem_row_major);
}
"""
    module = compile_cuda(source)
    a = placed(np.full((16, 16), 100, np.int8), False, 0)[0]
    d = placed(np.zeros((16, 16), np.int32), False, 0)[0]
    top = 2**31 - 1
    for saturate, want in ((1, top), (0, top - 5 + 160000 - 2**32)):
        module.launch("sum", block=32, args=[d, a, top - 5, saturate]).raise_on_findings()
        assert (d == want).all()


@pytest.mark.parametrize("shift, ld, code", [(2, 16, "misaligned"), (0, 12, "misaligned"), (0, 512, "out-of-bounds")])
def test_wrong_addresses_are_found(compile_cuda: Compile, shift: int, ld: int, code: str) -> None:
    a, b = (placed(np.ones((16, 24), np.float16), False, 0)[0] for _ in range(2))
    c, d = (placed(np.ones((16, 16), np.float32), False, 0)[0] for _ in range(2))
    shifted = a.reshape(-1)[shift:]
    args = [d, shifted, b, c, ld, 16, 16, 0, 0]
    run = compile_cuda(SOURCE).launch("f16_f32_16_16_row_major_row_major", block=32, args=args)
    assert code in {f.code for f in run.findings}
    assert all(f.site.text.startswith("wmma.load.a") for f in run.findings if f.code == code)


def test_a_fragment_read_while_it_is_written_is_a_race(compile_cuda: Compile) -> None:
    source = r"""
#include <mma.h>
using namespace nvcuda;
extern "C" __global__ void racy(float* d, int barrier) {
  __shared__ __align__(128) half s[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) s[i] = __float2half(1.f);
  if (barrier) __syncthreads();
  wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> fc;
  wmma::fill_fragment(fc, 0.f);
  wmma::load_matrix_sync(fa, s, 16);
  wmma::load_matrix_sync(fb, s, 16);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(d + threadIdx.x / 32 * 256, fc, 16, wmma::mem_row_major);
}
"""
    d = placed(np.zeros((32, 16), np.float32), False, 0)[0]
    module = compile_cuda(source)
    for seed in range(4):
        module.launch("racy", block=64, args=[d, 1], seed=seed).raise_on_findings()
        assert (d == 16).all()
    found = {f.code for seed in range(4) for f in module.launch("racy", block=64, args=[d, 0], seed=seed).findings}
    assert "shared-race" in found
