"""Triton kernels, compiled for sm_80 and sm_90 without a GPU, run from their PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tkpy.emulator

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


@triton.jit
def softmax(y, x, n, B: tl.constexpr):
    r = tl.program_id(0)
    o = tl.arange(0, B)
    m = o < n
    v = tl.load(x + r * n + o, mask=m, other=-float("inf"))
    v = tl.exp(v - tl.max(v, 0))
    tl.store(y + r * n + o, v / tl.sum(v, 0), mask=m)


@triton.jit
def matmul(c, a, b, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(a + i[:, None] * K + k[None, :], mask=(i[:, None] < M) & (k[None, :] < K), other=0.0)
        y = tl.load(b + k[:, None] * N + j[None, :], mask=(k[:, None] < K) & (j[None, :] < N), other=0.0)
        acc = tl.dot(x, y, acc)
    tl.store(c + i[:, None] * N + j[None, :], acc, mask=(i[:, None] < M) & (j[None, :] < N))


def run(
    kernel: Any, signature: dict[str, str], constants: dict[str, int], arch: int, grid: Any, args: list[Any]
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", arch, 32))
    module = tkpy.emulator.load(compiled.asm["ptx"])
    assert not module.unmodelled
    (function,) = module.kernels.values()
    scratch = [None] * (len(function.params) - len(args))  # Triton appends scratch pointers
    for seed in range(4):
        module.launch(function.name, grid=grid, block=32 * compiled.metadata.num_warps, shared=compiled.metadata.shared,
                      args=[*args, *scratch], seed=seed).raise_on_findings()  # fmt: skip


@pytest.mark.parametrize("arch", [80, 90])
def test_softmax(arch: int) -> None:
    x = torch.randn(5, 100)
    y = torch.full((5, 100), float("nan"))
    run(softmax, {"y": "*fp32", "x": "*fp32", "n": "i32"}, {"B": 128}, arch, 5, [y, x, 100])
    assert np.allclose(y, torch.softmax(x.double(), 1), atol=1e-6)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")])
def test_matmul(arch: int, dtype: Any, name: str) -> None:
    a, b = torch.randn(70, 96).to(dtype), torch.randn(96, 80).to(dtype)
    c = torch.full((70, 80), float("nan"))
    signature = {"c": "*fp32", "a": f"*{name}", "b": f"*{name}", "M": "i32", "N": "i32", "K": "i32"}
    run(matmul, signature, {"BM": 64, "BN": 64, "BK": 32}, arch, (2, 2), [c, a, b, 70, 80, 96])
    want = a.double() @ b.double()
    bound = 1e-5 if dtype is not torch.float32 else 2e-3  # f32 products go through tf32
    assert (c - want).norm() <= bound * want.norm()
