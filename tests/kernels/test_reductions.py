"""Reductions, scans and masks of register tiles: types, layouts, directions and scopes, against float64."""

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from launchers import PLACES, launcher  # noqa: E402  (after the skips)
from sweeps import compile_sweep, uses_no_local_memory, values  # noqa: E402

from tkpy.numerics import compare  # noqa: E402

REDUCES = [("float", "float", 16, 8, "row"), ("float", "float", 32, 40, "row"), ("float", "float", 24, 16, "col"),
           ("bf16", "float", 16, 64, "row"), ("fp16", "float", 32, 16, "col"), ("e4m3", "float", 16, 64, "row"),
           ("tf32", "float", 16, 24, "row"), ("int", "int", 32, 16, "row"), ("int", "int", 16, 32, "col")]  # fmt: skip
SCANS = [("float", 16, 16, "row", "forward"), ("float", 32, 8, "row", "backward"), ("float", 8, 16, "col", "forward"),
         ("bf16", 16, 32, "row", "forward"), ("fp16", 16, 16, "col", "backward"), ("e5m2", 16, 32, "row", "forward"),
         ("tf32", 16, 16, "col", "backward")]  # fmt: skip
MASKS = [("float", 16, 32, "row", 4), ("float", 32, 16, "col", 2), ("bf16", 32, 64, "row", 1),
         ("fp16", 16, 32, "col", 4), ("e4m3", 16, 32, "row", 2), ("int", 32, 16, "row", 4)]  # fmt: skip
OPERATIONS = ["sum", "max", "min", "prod"]


def name(prefix: str, case: tuple) -> str:
    return "_".join([prefix, *map(str, case)])


@pytest.fixture(scope="module")
def folder(compile_kernel, toolchain):
    kernels = [
        f"{prefix}({name(prefix.lower(), case)}, {', '.join(map(str, case))})"
        for prefix, cases in [("REDUCE", REDUCES), ("SCAN", SCANS), ("MASK", MASKS)]
        for case in cases
    ]
    return compile_sweep(compile_kernel, toolchain, "reductions", kernels)


@pytest.fixture(scope="module", params=PLACES)
def run(request, folder):
    return launcher(request.param, folder, "reductions")


def reduced(x, operation, dim):
    function = {"sum": torch.sum, "max": torch.amax, "min": torch.amin, "prod": torch.prod}[operation]
    return function(x) if dim is None else function(x, dim)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", REDUCES, ids=lambda c: name("reduce", c))
def test_reductions(run, case, operation, accumulate):
    kind, vector, rows, cols, _ = case
    x = values(kind, rows, cols)
    if operation == "prod":  # near 1, or -1 and 1, so that nothing over- or underflows
        x = torch.where(x.double() > 60, -1, 1).to(x.dtype) if kind == "int" else (x.float().sign()).to(x.dtype)
        x[3, 5] = 3
    elif kind == "int":
        x[::2] *= -1
    starts = [values(vector, n, seed=s) for s, n in enumerate((rows, cols))]
    per_row, per_col = (s.clone() for s in starts)
    every = values(vector, 32)
    run(name("reduce", case), [x, per_row, per_col, every, OPERATIONS.index(operation) + 4 * accumulate], block=32)
    wide = x.double()
    for got, start, dim in ((per_row, starts[0], 1), (per_col, starts[1], 0)):
        want = reduced(wide, operation, dim)
        if accumulate:
            want = reduced(torch.stack([want, start.double()]), operation, 0)
        assert compare(got, want, 2e-6)
    if not accumulate:
        want = reduced(wide, operation, None)
        assert compare(every, want.expand(32), 1e-5)  # a sum of signed values: relative to its terms below
        assert (every.double() - want).abs().max() <= 1e-6 * wide.abs().sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("operation", OPERATIONS[:3])
def test_columns_over_a_warpgroup(run, operation, seed):
    x, y = values("float", 2, 64, 40, seed=seed), torch.full((2, 40), float("nan"))
    run("columns_of_a_warpgroup", [x, y, OPERATIONS.index(operation)], block=256, seed=seed)
    assert compare(y, reduced(x.double(), operation, 1), 2e-6)


def scanned(x, decay, state, backward):
    """y_t = decay_t y_(t-1) + x_t along dimension 1, and the last state."""
    order = range(x.shape[1] - 1, -1, -1) if backward else range(x.shape[1])
    y, state = torch.empty_like(x), state.clone()
    for t in order:
        state = decay[:, t] * state + x[:, t]
        y[:, t] = state
    return y, state


@pytest.mark.parametrize("op", range(7))
@pytest.mark.parametrize("case", SCANS, ids=lambda c: name("scan", c))
def test_scans(run, case, op):
    kind, rows, cols, _, direction = case
    x = values(kind, rows, cols)
    d = (values(kind, rows, cols, seed=1).float().abs().clamp(0.2, 1.0)).to(x.dtype)  # not all of them shrink
    if kind == "tf32":
        d = (d.view(torch.int32) & ~0x1FFF).view(torch.float32)
    by_row, by_col = (values(kind, rows, cols, seed=s) for s in (2, 3))
    states = [values("float", n, seed=4) for n in (rows, cols)]
    row_state, col_state = (s.clone() for s in states)
    run(name("scan", case), [x, d, by_row, by_col, row_state, col_state, op], block=32)
    wide, decays = x.double(), d.double()
    decay = [torch.ones_like(decays), decays[0, 0].expand(rows, cols), decays[:, :1].expand(rows, cols),
             decays[:1].expand(rows, cols), decays, torch.ones_like(decays), decays][op]  # fmt: skip
    start = [s.double() if op < 5 else torch.zeros(len(s), dtype=torch.float64) for s in states]
    tolerance = {"float": 2e-6, "tf32": 1e-3, "bf16": 4e-3, "fp16": 6e-4, "e5m2": 0.1}[kind]
    backward = direction == "backward"
    want, state = scanned(wide, decay, start[0], backward)
    assert compare(by_row.float(), want, tolerance)
    assert compare(row_state, state if op < 5 else states[0].double(), 2e-6)
    want, state = scanned(wide.T, decay.T, start[1], backward)
    assert compare(by_col.float(), want.T, tolerance)
    assert compare(col_state, state if op < 5 else states[1].double(), 2e-6)


PARAMETERS = [
    *((0, p, 0, 0) for p in (0, 5, -7, 100, -100)), *((1, p, 0, 0) for p in (0, 3, -2)),
    *((2, *w) for w in [(0, 4, 0), (3, 0, 0), (-9, 7, 20), (0, 100, 100), (2, -1, 3)]),
    *((3, *b, 0) for b in [(100, 100), (17, 31), (1, 1), (0, 5), (64, 15)]), (4, 0, 0, 0), (4, 1, 0, 0), (5, 1, 0, 0),
    (6, 2, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("op, p, q, r", PARAMETERS)
@pytest.mark.parametrize("case", MASKS, ids=lambda c: name("mask", c))
def test_masks(run, case, op, p, q, r):
    kind, rows, cols, _, warps = case
    height = warps * rows
    x, y = values(kind, height, cols), values(kind, height, cols, seed=1)
    row, col = torch.arange(height)[:, None], torch.arange(cols)
    keep = {
        0: lambda: col <= row + p,
        1: lambda: col >= row + p,
        2: lambda: (col >= row + p - q) & (col <= row + p + r),
        3: lambda: (row < p) & (col < q),
        4: lambda: (
            ((0xA5A5A5A5A5A5A5A5 >> p) >> (row // 8 * (cols // 16) + col // 16).numpy().astype("uint64") & 1) != 0
        ),
        5: lambda: (row + col) % 3 == p,
        6: lambda: col <= row + p,
    }[op]()
    lowest = {"int": -(2**31), "e4m3": -448.0}.get(kind, -math.inf)
    want = torch.where(torch.as_tensor(keep), x.double(), -5.0 if op != 6 else lowest)
    run(name("mask", case), [x, y, op, p, q, r], block=32 * warps)
    assert torch.equal(y.double(), want)


def test_reductions_stay_in_registers(folder):
    uses_no_local_memory(folder, "reductions")
