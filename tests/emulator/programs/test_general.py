"""Whole CUDA programs for any GPU, against numpy; where they run: conftest.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tkpy.emulator import Run

SOURCE = (Path(__file__).parent / "general.cu").read_text()


@pytest.fixture
def run(runner: Callable[..., Run]) -> Callable[..., Run]:
    return functools.partial(runner, SOURCE)


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


def small(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.int32)


def test_scans(run):
    x = small(32)
    want = np.cumsum(x)
    run("warp_scan", block=32, args=[x])
    assert np.array_equal(x, want)
    for n in (1, 31, 255, 256):
        x = small(n)
        want = np.cumsum(x)
        run("block_scan", block=256, args=[x, n])
        assert np.array_equal(x, want)


@pytest.mark.parametrize("n", [1, 257, 1500])
def test_look_back_scan(run, n):
    blocks = -(-n // 256)
    x = small(n)
    want = np.cumsum(x)
    run("look_back_scan", grid=blocks, block=256,
        args=[x, n, np.zeros(1, np.uint32), np.zeros(blocks, np.uint64)])  # fmt: skip
    assert np.array_equal(x, want)


@pytest.mark.parametrize("n", [1, 128, 131])
def test_rows(run, n):
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((3, n)) * 3).astype(np.float32)
    gain, bias = rng.standard_normal((2, n)).astype(np.float32)
    y = np.full_like(x, np.nan)
    run("layer_norm", within=1e-5 if n > 1 else 1e-2, grid=3, block=128, args=[y, x, gain, bias, n])
    v = x.astype(np.float64)
    want = (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) * gain + bias
    close(y, want, 2e-5 if n > 1 else 1e-2)  # one element: the variance is rounding
    run("online_softmax", within=1e-5, grid=3, block=32, args=[y, x, n])
    e = np.exp(v - v.max(1, keepdims=True))
    close(y, e / e.sum(1, keepdims=True), 1e-5)


@pytest.mark.parametrize("n", [4, 64, 100])
def test_products(run, n):
    rng = np.random.default_rng(n)
    a, x = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((5, n), n))
    y = np.full(5, np.nan, np.float32)
    run("matvec_bf16", within=1e-6, grid=5, block=32, args=[y, a.view(np.uint16), x.view(np.uint16), n])
    close(y, a.astype(np.float64) @ x.astype(np.float64), 1e-5)
    p, q = rng.integers(-128, 128, (5, n), dtype=np.int8), rng.integers(-128, 128, n, dtype=np.int8)
    z = np.zeros(5, np.int32)
    run("matvec_dp4a", grid=5, block=32, args=[z, p.view(np.int32), q.view(np.int32), n // 4])
    assert np.array_equal(z, p.astype(np.int32) @ q.astype(np.int32))
    h, g = (rng.integers(-3, 4, n).astype(np.float16) for _ in range(2))  # exact in fp16
    s = np.full(1, np.nan, np.float32)
    run("dot_half2", block=32, args=[s, h, g, n // 2])
    assert s[0] == (h.astype(np.float64) * g.astype(np.float64)).sum()


@pytest.mark.parametrize("h, w", [(1, 1), (8, 32), (17, 67)])
def test_stencil(run, h, w):
    x = np.random.default_rng(0).integers(-9, 10, (h, w)).astype(np.float32)
    p = np.pad(x, 1)
    want = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * x
    y = np.full_like(x, np.nan)
    run("stencil", grid=(-(-w // 32), -(-h // 8)), block=(32, 8), args=[y, x, h, w])
    assert np.array_equal(y, want)


@pytest.mark.parametrize("n", [1, 16, 37])
def test_matmul_in_double(run, n):
    a, b = np.random.default_rng(n).standard_normal((2, n, n))
    c = np.full((n, n), np.nan)
    run("matmul_f64", grid=(-(-n // 16),) * 2, block=(16, 16), args=[c, a, b, n])
    close(c, a @ b, 1e-14)


def test_two_way_conflicts_are_counted(run):
    x = np.arange(1024, dtype=np.float32).reshape(32, 32)
    out = np.zeros_like(x)
    done = run("transpose_two_way", block=32, args=[out, x])
    assert np.array_equal(out, x.T)
    loads, stores = done.counters.select("ld.shared"), done.counters.select("st.shared")
    assert loads.shared_wavefronts == 2 * loads.shared_requests == 64
    assert stores.shared_wavefronts == stores.shared_requests == 32


def test_barrier_of_the_whole_grid(run):
    blocks, rounds = 5, 7
    data = np.zeros((2, blocks), np.int32)
    data[0] = np.arange(blocks) * 10
    run("grid_barrier", grid=blocks, block=32, args=[data, np.zeros(1, np.uint32), rounds])
    assert np.array_equal(data[rounds % 2], np.roll(np.arange(blocks) * 10, -rounds) + rounds)


def test_sort_and_compaction(run):
    x = np.random.default_rng(0).integers(0, 1 << 32, 256, dtype=np.uint32)
    want = np.sort(x)
    run("bitonic_sort", block=256, args=[x])
    assert np.array_equal(x, want)
    v, out, count = small(333), np.zeros(333, np.int32), np.zeros(1, np.int32)
    run("compact", unordered=[out], grid=6, block=64, args=[out, count, v, 333])
    odd = v[v % 2 != 0]
    assert count[0] == len(odd)
    assert sorted(out[: len(odd)]) == sorted(odd)
    assert not out[len(odd) :].any()


def test_linked_lists(run):
    rng = np.random.default_rng(0)
    nodes = np.zeros(200, np.dtype([("value", "i4"), ("pad", "i4"), ("next", "u8")]))
    nodes["value"] = rng.integers(-1000, 1000, 200)
    where = nodes.ctypes.data + 16 * np.arange(200)
    heads, want = np.zeros(32, np.uint64), []
    for lane, chain in enumerate(np.split(rng.permutation(200), np.sort(rng.integers(0, 200, 31)))):
        nodes["next"][chain[:-1]] = where[chain[1:]]
        heads[lane] = where[chain[0]] if len(chain) else 0
        want.append((nodes["value"][chain].sum(), len(chain)))
    total, length = np.zeros(32, np.int64), np.zeros(32, np.int32)
    run(
        "list_walk",
        block=32,
        args=[total, length, heads],
        buffers=[nodes.view(np.uint8)],
        pointers=[heads, nodes["next"]],
    )
    assert list(zip(total, length, strict=True)) == want


def test_maximum_by_compare_and_swap(run):
    x = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    best = np.full(1, -1e30, np.float32)
    run("float_max", grid=4, block=64, args=[best, x, 200])
    assert best[0] == x.max()


def ackermann(m: int, n: int) -> int:
    return [n + 1, n + 2, 2 * n + 3][m]


def test_calls_and_constants(run):
    x = np.arange(40, dtype=np.float32)
    want = [v * v if i % 3 else v / 2 for i, v in enumerate(x.tolist())]
    run("virtual_calls", block=40, args=[x])
    assert x.tolist() == want
    out = np.zeros(24, np.int32)
    run("deep_recursion", block=24, args=[out])
    assert out.tolist() == [ackermann(t % 3, t // 3) for t in range(24)]
    v, y = small(70), np.zeros(70, np.int32)
    run("fir", grid=math.ceil(70 / 32), block=32, args=[y, v, 70])
    assert np.array_equal(y, np.convolve(v, [1, -2, 3, -2, 1])[:70])
