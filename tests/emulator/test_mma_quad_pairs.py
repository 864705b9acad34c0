"""mma.m8n8k4 of f16: four products a warp, against plain matrix products through the layouts of PTX ISA 9.7.14.5.1."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from emulator_harness import results

LANE, I4, I8 = np.arange(32)[:, None], np.arange(4)[None, :], np.arange(8)[None, :]
QUAD = LANE // 4 % 4  # lanes 4q .. 4q + 3 and 16 + 4q .. make product q
HIGH = 4 * (LANE >= 16)


def a_place(layout: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[lane, element] -> product, row, column."""
    row, col = (LANE % 4 + HIGH, I4) if layout == "row" else (I4 + HIGH, LANE % 4)
    return np.broadcast_arrays(QUAD, row, col)


def b_place(layout: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, col = (LANE % 4, I4 + HIGH) if layout == "row" else (I4, LANE % 4 + HIGH)
    return np.broadcast_arrays(QUAD, row, col)


def c_place(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if kind == "f16":
        return np.broadcast_arrays(QUAD, LANE % 4 + HIGH, I8)
    return np.broadcast_arrays(QUAD, (LANE & 1) + (I8 & 2) + HIGH, (I8 & 4) + (LANE & 2) + (I8 & 1))


def to_words(values: np.ndarray, kind: str) -> np.ndarray:
    return np.ascontiguousarray(values.astype({"f16": np.float16, "f32": np.float32}[kind])).view(np.uint32)


def quad_pairs(
    la: str, lb: str, d: str, c: str, a_words: np.ndarray, b_words: np.ndarray, c_words: np.ndarray
) -> np.ndarray:
    count = {"f16": 4, "f32": 8}
    given = np.ascontiguousarray(np.concatenate([a_words, b_words, c_words], axis=1))
    names = [f"w{i}" for i in range(given.shape[1])]
    loads = "".join(f"ld.global.b32 {name}, [at+{4 * i}];" for i, name in enumerate(names))
    out = [f"d{i}" for i in range(count[d])]
    vectors = (", ".join(v) for v in (out, names[:2], names[2:4], names[4:]))
    body = f""".reg .b32 w<12>, d<8>; .reg .b64 at; ld.param.u64 at, [given]; mad.wide.u32 at, %lane, {4 * len(names)}, at; {loads}
mma.sync.aligned.m8n8k4.{la}.{lb}.{d}.f16.f16.{c} {", ".join("{" + v + "}" for v in vectors)};"""
    return results(body, *out, params=".param .u64 given", args=[given])


@pytest.mark.parametrize("d, c", [("f16", "f16"), ("f32", "f16"), ("f32", "f32")])
@pytest.mark.parametrize("la, lb", [*itertools.product(["row", "col"], repeat=2)])
def test_four_products(la: str, lb: str, d: str, c: str) -> None:
    rng = np.random.default_rng(0)
    a, b, start = (rng.integers(-9, 10, shape).astype(np.float64) for shape in ((4, 8, 4), (4, 4, 8), (4, 8, 8)))
    words = [to_words(a[a_place(la)], "f16"), to_words(b[b_place(lb)], "f16"), to_words(start[c_place(c)], c)]
    got = quad_pairs(la, lb, d, c, *words)
    want = a @ b + start
    assert np.array_equal(got, to_words(want[c_place(d)], d))
    for wrong in (np.roll(want, 1, axis=0), want.transpose(0, 2, 1)):  # another product's, or transposed
        assert not np.array_equal(got, to_words(wrong[c_place(d)], d))


def test_halves_are_rounded_once() -> None:
    a, b, start = np.ones((4, 8, 4)), np.full((4, 4, 8), 0.75), np.full((4, 8, 8), 2048.0)
    words = [
        to_words(a[a_place("row")], "f16"),
        to_words(b[b_place("col")], "f16"),
        to_words(start[c_place("f16")], "f16"),
    ]
    got = quad_pairs("row", "col", "f16", "f16", *words)
    assert (got.view(np.float16) == 2052).all()  # 2051 to even; adding 0.75 four times in f16 would stay at 2048
