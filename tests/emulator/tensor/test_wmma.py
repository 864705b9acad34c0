"""wmma fragments cover their matrices, and wmma.mma is the matrix product."""

from __future__ import annotations

import numpy as np
import pytest
from tensor_operands import BITS, pack_lanes, random_operand

WIDE = [(16, 16, 16), (8, 32, 16), (32, 8, 16)]
OPS = [
    *[(*s, "f16", c, d) for s in WIDE for c in ("f16", "f32") for d in ("f16", "f32")],
    *[(*s, "bf16", "f32", "f32") for s in WIDE],
    *[(*s, t, "s32", "s32") for s in WIDE for t in ("s8", "u8")],
    (16, 16, 8, "tf32", "f32", "f32"),
    *[(8, 8, 32, t, "s32", "s32") for t in ("s4", "u4")],
    (8, 8, 128, "b1", "s32", "s32"),
]
REGISTERS = {  # of A and B, as ptxas 13.0 demands them
    "f16": dict.fromkeys(WIDE, (8, 8)),
    "bf16": {WIDE[0]: (4, 4), WIDE[1]: (2, 8), WIDE[2]: (8, 2)},
    "s8": {WIDE[0]: (2, 2), WIDE[1]: (1, 4), WIDE[2]: (4, 1)},
    "tf32": {(16, 16, 8): (4, 4)},
    "s4": {(8, 8, 32): (1, 1)},
    "b1": {(8, 8, 128): (1, 1)},
}


def words(m: int, n: int, k: int, kind: str, c: str, d: str) -> dict:
    return {"m": m, "n": n, "k": k, "a": kind, "b": kind, "c": c, "d": d}


@pytest.mark.parametrize("op", OPS)
def test_fragments_hold_every_element_equally_often(native, op):
    m, n, k, kind, c, d = op
    cells = {}
    for matrix, name, shape in ((0, kind, (m, k)), (1, kind, (k, n)), (2, c, (m, n)), (2, d, (m, n))):
        found = native.wmma_cells(matrix, name, **words(*op))
        cells[matrix] = found
        times = np.zeros(shape, int)
        np.add.at(times, (found[..., 0], found[..., 1]), 1)
        assert times.min() == times.max() >= 1
    want = REGISTERS[kind.replace("u", "s")].get((m, n, k))
    assert (len(cells[0]), len(cells[1])) == want


@pytest.mark.parametrize("op", OPS)
def test_product(native, op):
    m, n, k, kind, c, d = op
    assert native.wmma_reason(**words(*op)) == ""
    rng = np.random.default_rng(4)
    bits_a, va = random_operand(rng, kind, (m, k))
    bits_b, vb = random_operand(rng, kind, (k, n))
    vc = rng.integers(-50, 50, (m, n)).astype(np.float64)
    registers = [
        pack_lanes(native.wmma_cells(i, kind, **words(*op)), x, BITS[kind]) for i, x in ((0, bits_a), (1, bits_b))
    ]
    encoded = {
        "f16": lambda x: x.astype(np.float16).view(np.uint16),
        "f32": lambda x: x.astype(np.float32).view(np.uint32),
        "s32": lambda x: x.astype(np.int64).astype(np.uint32),
    }
    cells = {t: native.wmma_cells(2, t, **words(*op)) for t in {c, d}}
    rc = pack_lanes(cells[c], encoded[c](vc), 16)
    got = native.wmma(*registers, rc, len(cells[d]), **words(*op))
    np.testing.assert_array_equal(got, pack_lanes(cells[d], encoded[d](va @ vb + vc), 16))


@pytest.mark.parametrize("satfinite", [False, True])
def test_integer_sums_wrap_or_saturate(native, satfinite):
    op = words(16, 16, 16, "u8", "s32", "s32")
    full = np.full((2, 32), 0xFFFFFFFF, np.uint32)
    got = native.wmma(full, full, np.full((8, 32), 2**31 - 1, np.uint32), 8, satfinite=satfinite, **op)
    assert (got.view(np.int32) == (2**31 - 1 if satfinite else -(2**31) - 1 + 16 * 255 * 255)).all()


def test_f64(native):
    rng = np.random.default_rng(6)
    a, b, c = (rng.integers(-9, 9, s) / 8 for s in ((8, 4), (4, 8), (8, 8)))
    la, lb, lc = (
        native.wmma_cells(i, "f64", **words(8, 8, 4, "f64", "f64", "f64"))[:, :, 0].astype(int) for i in range(3)
    )
    got = native.wmma_f64(*(x[at[..., 0], at[..., 1]] for x, at in ((a, la), (b, lb), (c, lc))))
    np.testing.assert_array_equal(got, (a @ b + c)[lc[..., 0], lc[..., 1]])


@pytest.mark.parametrize(
    "op, why",
    [
        ((16, 16, 8, "f16", "f32", "f32"), "no such shape"),
        ((16, 16, 16, "bf16", "f16", "f16"), "no such accumulators"),
        ((16, 16, 16, "s8", "s32", "f32"), "no such accumulators"),
        ((16, 16, 16, "tf32", "f32", "f32"), "no such shape"),
    ],
)
def test_reasons(native, op, why):
    assert why in native.wmma_reason(**words(*op))
    assert "differ" in native.wmma_reason(**{**words(*op), "b": "u8"})
