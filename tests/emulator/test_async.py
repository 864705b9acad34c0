"""Asynchronous copies, mbarriers and tensor cores: programs against numpy, and seeded faults in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tkpy.emulator import KernelError, Module, TensorMap

Compile = Callable[..., Module]

CP_ASYNC = r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(16) float s[2][128];
  unsigned base = __cvta_generic_to_shared(&s[0][0]);
  float sum = 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4; cp.async.commit_group;" :: "r"(base + threadIdx.x * 4), "l"(x + threadIdx.x) : "memory");
  for (int r = 0; r < 4; ++r) {
    if (r < 3) asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(base + (r + 1) % 2 * 512 + threadIdx.x * 4), "l"(x + (r + 1) * 128 + threadIdx.x) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    sum += s[r % 2][127 - threadIdx.x];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}"""

# A producer warp fills two slots by bulk copies; a consumer warp adds them up.
PIPELINE = r"""
#define WAIT(bar, parity) asm volatile("{ .reg .pred p; L: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra L; }" :: "r"(bar), "r"(parity) : "memory")
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(128) float s[2][32];
  __shared__ unsigned long long full[2], empty[2];
  unsigned slot = __cvta_generic_to_shared(s), f = __cvta_generic_to_shared(full), e = __cvta_generic_to_shared(empty);
  if (threadIdx.x == 0) for (int i = 0; i < 2; ++i) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(f + 8 * i) : "memory");
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 32;" :: "r"(e + 8 * i) : "memory");
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0) for (int r = 0; r < 6; ++r) {
      int i = r % 2, round = r / 2;
      WAIT(e + 8 * i, (round + 1) % 2);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 128;" :: "r"(f + 8 * i) : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 128, [%2];" :: "r"(slot + 128 * i), "l"(x + 32 * r), "r"(f + 8 * i) : "memory");
    }
  } else {
    int lane = threadIdx.x - 32;
    float sum = 0;
    for (int r = 0; r < 6; ++r) {
      int i = r % 2, round = r / 2;
      WAIT(f + 8 * i, round % 2);
      sum += s[i][31 - lane];
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(e + 8 * i) : "memory");
    }
    out[lane] = sum;
  }
}"""

FAULTS = {
    "no wait for cp.async": (CP_ASYNC, 'asm volatile("cp.async.wait_group 1;" ::: "memory");', "", "uninitialised-read"),
    "waits for one group too few": (CP_ASYNC, "wait_group 1", "wait_group 2", "uninitialised-read"),
    "no barrier after the wait": (CP_ASYNC, '"memory");\n    __syncthreads();\n    sum', '"memory");\n    sum', "shared-race"),
    "no barrier before the slot is filled again": (CP_ASYNC, "threadIdx.x];\n    __syncthreads();\n  }", "threadIdx.x];\n  }", "shared-race"),
    "copies from outside": (CP_ASYNC, "x + (r + 1) * 128", "x + (r + 2) * 128", "out-of-bounds"),
    "misaligned copy": (CP_ASYNC, "512 + threadIdx.x * 4", "512 + threadIdx.x * 4 + 2", "misaligned"),
    "half the bytes expected": (PIPELINE, "[%0], 128;", "[%0], 64;", "deadlock"),
    "twice the bytes expected": (PIPELINE, "[%0], 128;", "[%0], 256;", "deadlock"),
    "consumer never releases": (PIPELINE, 'asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(e + 8 * i) : "memory");', "", "deadlock"),
    "consumer does not wait": (PIPELINE, "WAIT(f + 8 * i, round % 2);", "", "uninitialised-read"),
    "producer waits for the wrong phase": (PIPELINE, "WAIT(e + 8 * i, (round + 1) % 2);", "WAIT(e + 8 * i, round % 2);", "deadlock"),
    "consumer waits for the wrong phase": (PIPELINE, "WAIT(f + 8 * i, round % 2);", "WAIT(f + 8 * i, (round + 1) % 2);", "uninitialised-read"),
    "initialised twice": (PIPELINE, "  __syncthreads();\n  if (threadIdx.x < 32)", '  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(f) : "memory");\n  __syncthreads();\n  if (threadIdx.x < 32)', "mbarrier-misuse"),
    "never initialised": (PIPELINE, "i < 2; ++i) {\n    asm", "i < 1; ++i) {\n    asm", "mbarrier-misuse"),
    "empty counts too many": (PIPELINE, "[%0], 32;", "[%0], 33;", "deadlock"),
    "empty counts too few": (PIPELINE, "[%0], 32;", "[%0], 16;", "deadlock"),
    "arrives three times over": (PIPELINE, '_, [%0];" :: "r"(e', '_, [%0], 3;" :: "r"(e', "mbarrier-misuse"),
    "no barrier after init": (PIPELINE, "  }\n  __syncthreads();\n  if (threadIdx.x < 32)", "  }\n  if (threadIdx.x < 32)", "shared-race"),
    "copy of a size that is not a multiple of 16": (PIPELINE, '[%0], [%1], 128, [%2];" :: ', '[%0], [%1], %3, [%2];" :: ', "misaligned"),
    "copy from outside": (PIPELINE, "x + 32 * r", "x + 32 * r + 324", "out-of-bounds"),
    "a copy nobody waits for": (PIPELINE, "for (int r = 0; r < 6; ++r) {\n      int i = r % 2, round = r / 2;\n      WAIT(f", "for (int r = 0; r < 4; ++r) {\n      int i = r % 2, round = r / 2;\n      WAIT(f", "async-in-flight"),
}  # fmt: skip


def launch(source: str, module: Module, seed: int) -> tuple[set[str], np.ndarray]:
    x, out = np.arange(512, dtype=np.float32), np.zeros(128, np.float32)
    try:
        done = module.launch(
            "k", block=64 if source is PIPELINE else 128, args=[out, x], seed=seed, max_instructions=100000
        )
    except KernelError as error:
        return {f.code for f in error.findings}, out
    return {f.code for f in done.findings}, out


@pytest.mark.parametrize("source", [CP_ASYNC, PIPELINE], ids=["cp.async", "pipeline"])
def test_correct_programs_are_right_and_silent(compile_cuda: Compile, source: str) -> None:
    module = compile_cuda(source)
    lanes, rounds = (32, 6) if source is PIPELINE else (128, 4)
    want = [sum(r * lanes + lanes - 1 - t for r in range(rounds)) for t in range(lanes)]
    for seed in range(128):
        codes, out = launch(source, module, seed)
        assert not codes
        assert out[:lanes].tolist() == want


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(compile_cuda: Compile, fault: str) -> None:
    source, before, after, code = FAULTS[fault]
    assert source.count(before) == 1, "the fault must change exactly one place"
    text = source.replace(before, after)
    if "%3" in after:  # the assembler refuses a bad size when it is an immediate
        text = text.replace('"l"(x + 32 * r), "r"(f + 8 * i)', '"l"(x + 32 * r), "r"(f + 8 * i), "r"(blockDim.x + 56)')
    module = compile_cuda(text)
    seen: set[str] = set()
    for seed in range(32):
        seen |= launch(source, module, seed)[0]
        if code in seen:
            return
    raise AssertionError(f"{code} not found in 32 schedules; found {seen or 'nothing'}")


MMA = r"""
#include <cuda_fp16.h>
#include <mma.h>
extern "C" __global__ void k(float* d, const __half* a, const __half* b) {  // D[16,8] = A[16,16] B[16,8], A and B row-major
  __shared__ __align__(16) __half sa[16][16], sb[16][8];
  for (int i = threadIdx.x; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
  for (int i = threadIdx.x; i < 128; i += 32) sb[i / 8][i % 8] = b[i];
  __syncwarp();
  unsigned ra[4], rb[2];
  unsigned pa = __cvta_generic_to_shared(&sa[threadIdx.x % 16][threadIdx.x / 16 * 8]), pb = __cvta_generic_to_shared(&sb[threadIdx.x % 16][0]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(pa) : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(rb[0]), "=r"(rb[1]) : "r"(pb) : "memory");
  float c[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
  d[g * 8 + t] = c[0]; d[g * 8 + t + 1] = c[1]; d[(g + 8) * 8 + t] = c[2]; d[(g + 8) * 8 + t + 1] = c[3];
}"""


def test_ldmatrix_and_mma(compile_cuda: Compile) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((16, 8)).astype(np.float16)
    d = np.zeros((16, 8), np.float32)
    done = compile_cuda(MMA).launch("k", block=32, args=[d, a, b])
    done.raise_on_findings()
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(d - want).max() <= 1e-5 * np.abs(want).max()
    assert done.counters.select("mma.sync").flops == 2 * 16 * 8 * 16


def test_tensor_map_rules_are_the_drivers() -> None:
    x = np.zeros((64, 64), np.float16)
    assert len(TensorMap(x, (32, 64), swizzle=128).encoded) == 128
    for box, swizzle, text in [
        ((32, 128), 128, "box"),
        ((512, 8), 0, "box"),
        ((8, 3), 0, "16"),
        ((8, 8), 33, "swizzle"),
    ]:
        with pytest.raises(ValueError, match=text):
            TensorMap(x, box, swizzle=swizzle)
    with pytest.raises(ValueError, match="contiguous"):
        TensorMap(x.T, (8, 8))
    with pytest.raises(TypeError, match="array"):
        TensorMap([1, 2], (8, 8))  # type: ignore[arg-type]
