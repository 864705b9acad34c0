"""Triton kernels, compiled for sm_90 and sm_80 with no GPU and run from their PTX: the project's own, and typical ones.

The project's kernels go through their ops' tables of cases, forward and backward, each launch under all checks and with a
seed of its own; results are compared with the float64 reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from two_machines import TritonModule, as_it_is, assembled

import tkpy.emulator
from tkpy import conformance, registry
from tkpy.numerics import TOLERANCE, compare

triton = pytest.importorskip("triton", reason="needs the package triton")

import triton.language as tl  # noqa: E402

import tkpy.emulator.triton as emulator  # noqa: E402

TRITON_OPS = [op for op in registry.ops().values() if "triton" in op.available]
CAPABILITIES = [90, 80]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SEEDS = range(3)
MACHINES = [(90, torch.float32), (90, torch.bfloat16), (80, torch.float16)]

both = pytest.mark.parametrize("capability", CAPABILITIES)


# ------------------------------------------------------------------------------------------------ the project's kernels
@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The triton backend takes CPU tensors, of every dtype: their launches are emulated."""
    monkeypatch.setattr(registry, "_triton_refusals", lambda call: [])


@pytest.mark.parametrize("capability, dtype", MACHINES, ids=str)
@pytest.mark.parametrize("op", TRITON_OPS, ids=lambda op: op.name)
def test_every_case_of_every_op(on_cpu: None, op: registry.Op, dtype: torch.dtype, capability: int) -> None:
    launches = comparisons = 0
    cases = [case for case in op.cases if not case.bench]
    for number, case in enumerate(cases, len(cases) * MACHINES.index((capability, dtype))):
        with emulator.emulated(capability, seed=1000 * number) as runs:
            results = list(conformance.check_case(op, case, backend="triton", dtype=dtype))
        wrong = [str(r) for r in results if not r.comparison]
        assert not wrong, wrong
        launches, comparisons = launches + len(runs), comparisons + len(results)
    assert launches
    assert comparisons >= len(cases)


AHEAD = [
    pytest.param(op, *entry, id=f"{op.name}-{entry[0].__name__}")
    for op in TRITON_OPS
    for entry in op.module("triton").AHEAD_OF_TIME
]


@both
@pytest.mark.parametrize("op, kernel, types, constants", AHEAD)
def test_ahead_of_time_kernels_are_modelled(
    op: registry.Op, kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int
) -> None:
    """The real shapes, which are too large to run here, hold no instruction that the emulator would stop at."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: (types | dict.fromkeys(constants, "constexpr"))[name] for name in kernel.arg_names}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    module = tkpy.emulator.load(compiled.asm["ptx"])
    assert not module.unmodelled, module.unmodelled
    assert len(module.kernels) == 1


def test_ahead_of_time_entries_are_launched() -> None:
    """`launch_compiled` runs what `triton.compile` returns, with the arguments in order."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants = registry.get("token_shift").module("triton").AHEAD_OF_TIME[0]
    signature = {name: (types | dict.fromkeys(constants, "constexpr"))[name] for name in kernel.arg_names}
    x, mix, last = torch.randn(2, 20, 300).bfloat16(), torch.rand(4, 300), torch.randn(2, 300).bfloat16()
    want = registry.get("token_shift").module("reference").forward(x.double(), mix.double(), last.double())
    for capability in CAPABILITIES:
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
        for seed in SEEDS:
            y = x.new_full((4, *x.shape), float("nan"))
            arguments = [x, mix, last, y, *x.shape, *x.stride(), *last.stride()]
            emulator.launch_compiled(compiled, (2, 3, 2), arguments, seed=seed).raise_on_findings()
            assert compare(y, want, TOLERANCE[torch.bfloat16])


# ----------------------------------------------------------------------------------------------------- typical kernels
def run_seeds(kernel: Any, grid: Any, *args: Any, capability: int, by_schedule: Any = (), **options: Any) -> None:
    """Each seed starts from the same memory; the last one's results stay. `by_schedule`: what a schedule may choose."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    before = [t.clone() for t in tensors]
    for seed in SEEDS:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        emulator.launch(kernel, grid, *args, capability=capability, seed=seed, **options).raise_on_findings()


@pytest.fixture(params=["emulator", "driver", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Launches in the emulator; and from the same PTX on a GPU, or through the emulated driver (two_machines.py)."""
    if request.param == "emulator":
        return run_seeds
    gpu = request.param == "gpu"
    device = request.getfixturevalue("gpu" if gpu else "emulated_driver")
    chosen: set[int] = set()
    assemble = assembled if gpu else as_it_is
    on_both = functools.partial(TritonModule, device=device, assemble=assemble, by_schedule=chosen)
    monkeypatch.setattr(emulator, "Module", on_both)
    monkeypatch.setattr(emulator, "_modules", {})

    def launch(kernel: Any, grid: Any, *args: Any, capability: int, by_schedule: Any = (), **options: Any) -> None:
        chosen.update(tensor.data_ptr() for tensor in by_schedule)
        emulator.launch(kernel, grid, *args, capability=capability, **options).raise_on_findings()

    return launch


@triton.jit
def _add(z, x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(z + at, tl.load(x + at, mask=mask) + tl.load(y + at, mask=mask), mask=mask)


@both
@pytest.mark.parametrize("n", [1, 127, 1000])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32, torch.float64], ids=str)
def test_vector_add(run: Callable[..., None], dtype: torch.dtype, n: int, capability: int) -> None:
    x, y = (torch.randint(-50, 50, (n,)).to(dtype) for _ in range(2))
    z = torch.full((n + 5,), 99).to(dtype)
    run(_add, (triton.cdiv(n, 256),), z, x, y, n, BLOCK=256, capability=capability)
    assert torch.equal(z[:n], x + y)
    assert (z[n:] == 99).all()


@triton.jit
def _softmax(y, x, n, stride, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    v = tl.load(x + row * stride + at, mask=at < n, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(y + row * stride + at, (e / tl.sum(e, axis=0)).to(y.dtype.element_ty), mask=at < n)


@both
@pytest.mark.parametrize("n, warps", [(1, 1), (100, 4), (777, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax(run: Callable[..., None], dtype: torch.dtype, n: int, warps: int, capability: int) -> None:
    x = (4 * torch.randn(3, n)).to(dtype)
    y = torch.full_like(x, float("nan"))
    run(_softmax, (3,), y, x, n, n, BLOCK=triton.next_power_of_2(n), num_warps=warps, capability=capability)
    assert compare(y, torch.softmax(x.double(), 1), TOLERANCE[dtype])


@triton.jit
def _matmul(c, a, b, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(a + i[:, None] * K + k[None, :], mask=(i[:, None] < M) & (k[None, :] < K), other=0.0)
        y = tl.load(b + k[:, None] * N + j[None, :], mask=(k[:, None] < K) & (j[None, :] < N), other=0.0)
        acc = tl.dot(x, y, acc)
    out = acc.to(c.dtype.element_ty)
    tl.store(c + i[:, None] * N + j[None, :], out, mask=(i[:, None] < M) & (j[None, :] < N))


@both
@pytest.mark.parametrize("stages", [1, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matmul_pipelined(run: Callable[..., None], dtype: torch.dtype, stages: int, capability: int) -> None:
    a, b = torch.randn(80, 176).to(dtype), torch.randn(176, 96).to(dtype)
    c = torch.full((80, 96), float("nan"), dtype=dtype)
    blocks = {"BM": 64, "BN": 64, "BK": 32}
    run(_matmul, (2, 2), c, a, b, 80, 96, 176, **blocks, num_stages=stages, num_warps=4, capability=capability)
    bound = TOLERANCE[dtype] if dtype is not torch.float32 else 2e-3  # float32 products are tf32's
    assert compare(c, a.double() @ b.double(), bound)


def test_a_pipelined_matmul_is_what_it_says() -> None:
    """The kernels above exercise wgmma on sm_90, mma.sync on sm_80, and cp.async on both."""
    a = torch.randn(128, 128).half()
    for capability, product in ((90, "wgmma.mma_async"), (80, "mma.sync")):
        compiled = emulator.compile(
            _matmul, a, a, a, 128, 128, 128, BM=64, BN=64, BK=32, num_stages=3, capability=capability
        )
        assert product in compiled.asm["ptx"]
        assert "cp.async.wait_group" in compiled.asm["ptx"]


@triton.jit
def _column_sums(out, x, M, N, BM: tl.constexpr, BN: tl.constexpr):
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    acc = tl.zeros((BN,), tl.float32)
    for start in range(0, M, BM):
        i = start + tl.arange(0, BM)
        acc += tl.sum(tl.load(x + i[:, None] * N + j[None, :], mask=(i[:, None] < M) & (j[None, :] < N), other=0.0), 0)
    tl.store(out + j, acc, mask=j < N)


@triton.jit
def _extremes(low, high, where, x, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    row = x + tl.program_id(0) * n
    v = tl.load(row + at, mask=at < n, other=float("inf"))
    w = tl.load(row + at, mask=at < n, other=-float("inf"))
    tl.store(low + tl.program_id(0), tl.min(v, 0))
    tl.store(high + tl.program_id(0), tl.max(w, 0))
    tl.store(where + tl.program_id(0), tl.argmax(w, 0))


@triton.jit
def _prefix(y, x, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.cumsum(tl.load(x + at), 0))


@both
def test_reductions_and_scan(run: Callable[..., None], capability: int) -> None:
    x = torch.randint(-9, 9, (50, 70)).float()
    sums = torch.full((70,), float("nan"))
    run(_column_sums, (3,), sums, x, 50, 70, BM=16, BN=32, capability=capability)
    assert torch.equal(sums, x.sum(0))
    y = torch.randn(4, 300)
    low, high, where = torch.empty(4), torch.empty(4), torch.empty(4, dtype=torch.int32)
    run(_extremes, (4,), low, high, where, y, 300, BLOCK=512, capability=capability)
    assert torch.equal(low, y.min(1).values)
    assert torch.equal(high, y.max(1).values)
    assert torch.equal(where.long(), y.argmax(1))
    ints = torch.randint(-9, 9, (256,), dtype=torch.int32)
    prefix = torch.empty_like(ints)
    run(_prefix, (1,), prefix, ints, BLOCK=256, capability=capability)
    assert torch.equal(prefix.long(), ints.cumsum(0))


@triton.jit
def _histogram(bins, total, x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at, mask=at < n, other=0)
    tl.atomic_add(bins + v, 1, mask=at < n)
    tl.atomic_add(total, tl.sum(tl.where(at < n, v, 0).to(tl.float32), 0))


@triton.jit
def _maxima_and_swaps(high, claimed, x, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_max(high + at % 4, tl.load(x + at))
    tl.atomic_cas(claimed + tl.program_id(0) % 2, 0, tl.program_id(0) + 1)


@both
def test_atomics(run: Callable[..., None], capability: int) -> None:
    x = torch.randint(0, 16, (700,), dtype=torch.int32)
    bins, total = torch.zeros(16, dtype=torch.int32), torch.zeros(1)
    run(_histogram, (6,), bins, total, x, 700, BLOCK=128, capability=capability)
    assert torch.equal(bins.long(), torch.bincount(x.long(), minlength=16))
    assert total.item() == x.sum().item()
    high, claimed = torch.full((4,), -1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    run(_maxima_and_swaps, (4,), high, claimed, x, BLOCK=128, capability=capability, by_schedule=[claimed])
    assert torch.equal(high, x[:512].view(-1, 4).max(0).values)
    assert claimed[0] in (1, 3)
    assert claimed[1] in (2, 4)


@triton.jit
def _layer_norm(y, mean, x, w, b, n, eps, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    mask = at < n
    v = tl.load(x + row * n + at, mask=mask, other=0.0).to(tl.float32)
    mu = tl.sum(v, 0) / n
    d = tl.where(mask, v - mu, 0.0)
    scale = tl.rsqrt(tl.sum(d * d, 0) / n + eps)
    out = d * scale * tl.load(w + at, mask=mask).to(tl.float32) + tl.load(b + at, mask=mask).to(tl.float32)
    tl.store(y + row * n + at, out.to(y.dtype.element_ty), mask=mask)
    tl.store(mean + row, mu)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm(run: Callable[..., None], dtype: torch.dtype, capability: int) -> None:
    n = 333
    x, w, b = (3 + torch.randn(4, n)).to(dtype), torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    y, mean = torch.full_like(x, float("nan")), torch.full((4,), float("nan"))
    run(_layer_norm, (4,), y, mean, x, w, b, n, 1e-5, BLOCK=512, num_warps=4, capability=capability)
    want = torch.nn.functional.layer_norm(x.double(), (n,), w.double(), b.double(), 1e-5)
    assert compare(y, want, TOLERANCE[dtype])
    assert compare(mean, x.double().mean(1), 1e-5)


@triton.jit
def _attention(o, q, k, v, T, scale, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    head = tl.program_id(1) * T * D
    i, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    x = tl.load(q + head + i[:, None] * D + d[None, :], mask=i[:, None] < T, other=0.0)
    top = tl.full((BM,), -float("inf"), tl.float32)
    mass = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for start in range(0, T, BN):
        j = start + tl.arange(0, BN)
        y = tl.load(k + head + j[None, :] * D + d[:, None], mask=j[None, :] < T, other=0.0)
        s = tl.dot(x, y) * scale
        seen = (j[None, :] < T) & ((i[:, None] >= j[None, :]) | (not CAUSAL))
        s = tl.where(seen, s, -1.0e30)
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        fade = tl.exp2(top - new)
        mass = mass * fade + tl.sum(p, 1)
        z = tl.load(v + head + j[:, None] * D + d[None, :], mask=j[:, None] < T, other=0.0)
        acc = tl.dot(p.to(z.dtype), z, acc * fade[:, None])
        top = new
    out = acc / mass[:, None]
    tl.store(o + head + i[:, None] * D + d[None, :], out.to(o.dtype.element_ty), mask=i[:, None] < T)


@both
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_flash_attention(run: Callable[..., None], dtype: torch.dtype, causal: bool, capability: int) -> None:
    T, D = 150, 32
    q, k, v = (torch.randn(2, T, D).to(dtype) for _ in range(3))
    o = torch.full_like(q, float("nan"))
    options = {"CAUSAL": causal, "BM": 64, "BN": 32, "D": D, "num_stages": 2, "num_warps": 4}
    run(_attention, (3, 2), o, q, k, v, T, 1.4426950408889634 / D**0.5, **options, capability=capability)
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal)
    assert compare(o, want, TOLERANCE[dtype])


# ------------------------------------------------------------------------------------------------------- the launcher
@triton.jit
def _out_of_bounds(y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, at, mask=at < n)


@both
def test_a_wrong_bound_is_found(capability: int) -> None:
    room = torch.zeros(140, dtype=torch.int32)
    good = emulator.launch(_out_of_bounds, (2,), room, 140, BLOCK=128, capability=capability)
    assert not good.findings
    bad = emulator.launch(_out_of_bounds, (2,), room[:128], 140, BLOCK=128, capability=capability)
    assert {f.code for f in bad.findings} == {"out-of-bounds"}
    assert bad.findings[0].source[0].endswith("test_triton_programs.py")


def test_the_usual_launch_syntax_and_its_end() -> None:
    run_before = triton.runtime.jit.JITFunction.run
    y = torch.zeros(64, dtype=torch.int32)
    with emulator.emulated(80) as runs:
        _out_of_bounds[lambda meta: (triton.cdiv(64, meta["BLOCK"]),)](y, 64, BLOCK=32)
    assert [r.kernel for r in runs] == ["_out_of_bounds"]
    assert np.array_equal(y, np.arange(64))
    with pytest.raises(tkpy.emulator.KernelError), emulator.emulated():
        _out_of_bounds[(2,)](y[:40], 64, BLOCK=32)
    assert triton.runtime.jit.JITFunction.run is run_before


def test_arguments_are_checked() -> None:
    y = torch.zeros(64, dtype=torch.int32)
    compiled = emulator.compile(_out_of_bounds, y, 64, BLOCK=32)
    with pytest.raises(TypeError, match=r"takes 2 arguments \(y, n\), got 1"):
        emulator.launch_compiled(compiled, 2, [y])
    with pytest.raises(TypeError, match=r"missing arguments \['n'\]"):
        emulator.launch_compiled(compiled, 2, {"y": y})
    with pytest.raises(TypeError, match=r"needs a function under @triton\.jit, got builtins.function"):
        emulator.launch(lambda: None, 1)


GROUPS = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry groups(.param .u64 out, .param .u64 x) {
.reg .b32 %r<4>; .reg .b64 %o, %a; .shared .align 16 .b8 s[64];
ld.param.u64 %o, [out]; ld.param.u64 %a, [x]; mov.u32 %r1, s;
cp.async.ca.shared.global [%r1], [%a], 4; cp.async.commit_group;
cp.async.ca.shared.global [%r1+4], [%a+4], 4; cp.async.commit_group;
cp.async.ca.shared.global [%r1+8], [%a+8], 4; cp.async.commit_group;
cp.async.ca.shared.global [%r1+12], [%a+12], 4; cp.async.commit_group;
cp.async.wait_group 3;
ld.shared.u32 %r2, [%r1]; st.global.u32 [%o], %r2;
cp.async.wait_group 2;
ld.shared.u32 %r2, [%r1+4]; st.global.u32 [%o+4], %r2;
cp.async.wait_group 0;
ret; }
"""


def test_groups_that_end_out_of_order_still_count() -> None:
    """A wait counts the latest groups, ended or not: a later copy that is early must not stand in for an earlier one."""
    module = tkpy.emulator.load(GROUPS)
    x = np.array([7, 11, 13, 17], np.uint32)
    for seed in range(64):
        out = np.zeros(2, np.uint32)
        module.launch("groups", args=[out, x], seed=seed).raise_on_findings()
        assert out.tolist() == [7, 11], seed
