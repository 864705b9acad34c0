"""Whole programs for sm_90a, against numpy; where they run: conftest.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import aligned

from tkpy.emulator import Run, TensorMap

SOURCE = (Path(__file__).parent / "hopper.cu").read_text()


@pytest.fixture
def run(runner: Callable[..., Run]) -> Callable[..., Run]:
    return functools.partial(runner, SOURCE)


def window(x: np.ndarray, at: tuple[int, ...], box: tuple[int, ...]) -> np.ndarray:
    """The box that starts at `at`; zeros outside x."""
    out = np.zeros(box, x.dtype)
    for index in np.ndindex(*box):
        where = tuple(a + i for a, i in zip(at, index, strict=True))
        if all(0 <= w < n for w, n in zip(where, x.shape, strict=True)):
            out[index] = x[where]
    return out


BOXES = [
    ((100,), (64,), [(0,), (50,), (-20,), (96,), (200,)]),
    ((9, 12), (4, 8), [(0, 0), (2, 3), (-1, -5), (7, 8), (9, 0), (3, -8)]),
    ((3, 5, 8), (2, 2, 8), [(0, 0, 0), (1, 3, 1), (2, 4, -3), (-2, 0, 0)]),
    ((2, 3, 4, 8), (2, 1, 2, 4), [(0, 0, 0, 0), (1, 2, 3, 5), (-1, 1, -1, 2)]),
    ((2, 2, 3, 2, 12), (2, 1, 2, 2, 8), [(0, 0, 0, 0, 0), (1, 1, 2, 1, 7), (0, -1, 1, 0, 0), (-1, 0, -1, -1, -1)]),
]


@pytest.mark.parametrize("shape, box, places", BOXES, ids=lambda v: None)
def test_tensor_copies_fill_with_zeros_outside(run, shape, box, places):
    x = aligned(np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape))
    tensor_map = TensorMap(x, box)
    for at in places:
        out = np.full(box, np.nan, np.float32)
        coordinates = [*at[::-1], 0, 0, 0, 0, 0][:5]
        run(f"tile{len(shape)}", block=32, args=[out, tensor_map, out.size, *coordinates])
        assert np.array_equal(out, window(x, at, box)), at


def test_reductions_into_global_memory(run):
    x = np.random.default_rng(0).integers(-9, 10, (8, 8)).astype(np.float32)
    out = aligned(np.zeros((12, 12), np.float32))
    run("add_tiles", grid=5, block=64, args=[TensorMap(out, (8, 8)), x, 2])
    want = np.zeros((40, 40), np.float32)
    for b in range(5):
        want[10 + 2 * b - 1 :, 10 + 2 * b - 3 :][:8, :8] += x * (b + 1)
    assert np.array_equal(out, want[10:22, 10:22])
    v, total = np.arange(64, dtype=np.int32), aligned(np.full(64, 7, np.int32))
    run("bulk_add", grid=4, block=64, args=[total, v])
    assert np.array_equal(total, 7 + 4 * v + 6)


def test_reductions_do_not_depend_on_the_host_threads(compile_cuda):
    """No addition is lost, and the order of rounding is the seed's."""
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    sums = []
    for threads in (1, 4, 4, 4):
        out = aligned(np.zeros((12, 12), np.float32))
        run = compile_cuda(SOURCE).launch(
            "add_tiles", grid=300, block=64, args=[TensorMap(out, (8, 8)), x, 0], threads=threads, checks="none"
        )
        run.raise_on_findings()
        sums.append(out.copy())
    total = x.astype(np.float64)[1:, 3:] * sum(range(1, 301))
    assert np.linalg.norm(sums[0][:7, :5] - total) <= 1e-5 * np.linalg.norm(total)
    for again in sums[1:]:
        assert np.array_equal(again, sums[0])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_clusters(run, n):
    x, out = aligned(np.arange(128, dtype=np.float32)), np.zeros((2 * n, 128), np.float32)
    run("multicast", grid=2 * n, block=128, cluster=n, args=[out, x])
    assert np.array_equal(out, x + np.arange(2 * n)[:, None] % n)
    data, bins = np.random.default_rng(0).integers(0, 256, 999).astype(np.uint8), np.zeros(256, np.uint32)
    run("spread_histogram", grid=n, block=96, cluster=n, args=[bins, data, 999])
    assert np.array_equal(bins, np.bincount(data, minlength=256))
    passed = np.zeros(n, np.int32)
    run("ring_pass", grid=n, block=64, cluster=n, args=[passed, 5])
    assert passed.tolist() == [(r - 5) % n * 100 + 5 for r in range(n)]
    sums = np.zeros((n, 32), np.uint32)
    run("remote_stores", grid=n, block=32, cluster=n, args=[sums])
    assert sums.tolist() == [[sum(1000 * f + 100 * r + 31 - t for f in range(n)) for t in range(32)] for r in range(n)]


def operand(rng: np.random.Generator, dtype: Any, rows: int, depth: int) -> np.ndarray:
    if dtype == np.int8:
        return aligned(rng.integers(-128, 128, (rows, depth)).astype(np.int8))
    values = rng.standard_normal((rows, depth)).astype(dtype)
    if dtype == np.float32:  # tf32: the low 13 bits are not read
        values = (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return aligned(values)


TYPES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "tf32": np.float32,
    "int8": np.int8,
    "e4m3": ml_dtypes.float8_e4m3fn,
}


# The ISA leaves order and rounding of the sums open. Tensor cores align products and cut off; of fp8 they keep 13 bits.
BOUNDS = {"bf16": 2e-5, "fp16": 2e-5, "tf32": 2e-5, "int8": 0.0, "e4m3": 4e-3}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", TYPES)
def test_mma(run, name, steps):
    dtype = np.dtype(TYPES[name])
    depth = 32 * steps // dtype.itemsize
    rng = np.random.default_rng(steps)
    a, b = operand(rng, dtype, 16, depth), operand(rng, dtype, 8, depth)
    d = np.full((16, 8), 99, np.int32 if name == "int8" else np.float32)
    done = run(f"mma_{name}", within=BOUNDS[name], block=32, args=[d, a.view(np.uint8), b.view(np.uint8), steps])
    want = a.astype(np.float64) @ b.astype(np.float64).T
    assert np.abs(d - want).max() <= (0 if name == "int8" else 1e-5 * np.abs(want).max())
    assert done.counters.select("mma.sync").flops == 2 * 16 * 8 * depth


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", [name for name in TYPES if name != "int8"])
def test_wgmma_pipeline(run, name, steps):
    dtype = np.dtype(TYPES[name])
    columns = 128 // dtype.itemsize
    rng = np.random.default_rng(steps)
    a, b = (operand(rng, dtype, rows, steps * columns) for rows in (64, 16))
    raw = {1: np.uint8, 2: np.uint16, 4: np.float32}[dtype.itemsize]
    maps = [TensorMap(v.view(raw), (v.shape[0], columns), swizzle=128) for v in (a, b)]
    want = a.astype(np.float64) @ b.astype(np.float64).T
    d = np.full((64, 16), np.nan, np.float32)
    done = run(f"wgmma_{name}", within=BOUNDS[name], block=160, args=[d, *maps, steps])
    assert np.isfinite(d).all()
    assert np.abs(d - want).max() <= 1e-5 * np.abs(want).max()
    assert done.counters.select("wgmma.mma_async").flops == 2 * 64 * 16 * steps * columns
