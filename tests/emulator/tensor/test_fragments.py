"""Register layouts: bijective, inverse of each other, and equal to the ISA's formulas written out a second time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

A_SHAPES = [  # bits, m, k of mma.sync (PTX ISA 9.7.14.5)
    (64, 8, 4), (64, 16, 4), (64, 16, 8), (64, 16, 16), (32, 16, 4), (32, 16, 8), (16, 16, 8), (16, 16, 16),
    (8, 8, 16), (8, 16, 16), (8, 16, 32), (4, 8, 32), (4, 16, 32), (4, 16, 64), (1, 8, 128), (1, 16, 128), (1, 16, 256),
]  # fmt: skip


def per_register(bits: int) -> int:
    return 1 if bits >= 32 else 32 // bits


@pytest.mark.parametrize("bits, m, k", A_SHAPES)
def test_a_and_b_are_bijections_with_inverses(native, bits, m, k):
    e = per_register(bits)
    for rows, cols, cell, place in (
        (m, k, lambda *p: native.a_cell(bits, m, *p), lambda r, c: native.a_place(bits, m, r, c)),
        (k, 8, lambda *p: native.b_cell(bits, *p), lambda r, c: native.b_place(bits, r, c)),
    ):
        places = list(itertools.product(range(32), range(rows * cols // (32 * e)), range(e)))
        cells = [cell(*p) for p in places]
        assert sorted(cells) == list(itertools.product(range(rows), range(cols)))
        assert [place(*c) for c in cells] == places


@pytest.mark.parametrize("m, n", [(8, 8), (16, 8), (16, 64), (16, 256)])
def test_c_is_a_bijection_with_an_inverse(native, m, n):
    places = list(itertools.product(range(32), range(m * n // 32)))
    cells = [native.c_cell(m, *p) for p in places]
    assert sorted(cells) == list(itertools.product(range(m), range(n)))
    assert [native.c_place(m, *c)[:2] for c in cells] == places
    packed = list(itertools.product(range(32), range(m * n // 64), range(2)))
    assert [native.c_place_packed(m, *native.c_cell_packed(m, *p)) for p in packed] == packed


def test_the_figures_of_the_isa(native):
    """Formulas of 9.7.14.5.4 (m16n8k4 tf32) to 9.7.14.5.13, transcribed per shape with i the element index."""
    for lane in range(32):
        g, t = divmod(lane, 4)
        for i in range(8):  # m16n8k16, f16: a0..a7, b0..b3
            row = g if i < 2 or 4 <= i < 6 else g + 8
            col = t * 2 + (i & 1) + (8 if i >= 4 else 0)
            assert native.a_cell(16, 16, lane, i // 2, i % 2) == (row, col)
        for i in range(4):
            assert native.b_cell(16, lane, i // 2, i % 2) == (t * 2 + (i & 1) + (8 if i >= 2 else 0), g)
            assert native.c_cell(16, lane, i) == (g if i < 2 else g + 8, t * 2 + (i & 1))
            assert native.a_cell(32, 16, lane, i, 0) == (g if i % 2 == 0 else g + 8, t if i < 2 else t + 4)
        for i in range(16):  # m16n8k32, s8 and fp8
            row = g if i < 4 or 8 <= i < 12 else g + 8
            assert native.a_cell(8, 16, lane, i // 4, i % 4) == (row, t * 4 + (i & 3) + (0 if i < 8 else 16))
        for i in range(8):
            assert native.b_cell(8, lane, i // 4, i % 4) == (t * 4 + (i & 3) + (0 if i < 4 else 16), g)
        for i in range(32):  # m16n8k64, s4
            row = g if i < 8 or 16 <= i < 24 else g + 8
            assert native.a_cell(4, 16, lane, i // 8, i % 8) == (row, t * 8 + (i & 7) + (0 if i < 16 else 32))
        for i in range(8):  # m16n8k16, f64
            assert native.a_cell(64, 16, lane, i, 0) == (g if i % 2 == 0 else g + 8, t + i // 2 * 4)


@pytest.mark.parametrize("n", [8, 24, 256])
def test_wgmma_accumulators_cover_the_tile(native, n):
    cells = set()
    for warp, lane, i in itertools.product(range(4), range(32), range(n // 2)):
        g, t = divmod(lane, 4)
        cell = native.wgmma_d_cell(warp, lane, i)
        assert cell == (16 * warp + g + 8 * ((i // 2) % 2), 8 * (i // 4) + 2 * t + i % 2)
        cells.add(cell)
    assert len(cells) == 64 * n


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_wgmma_register_a_is_the_mma_operand_of_each_warp(native, bits):
    e, k = 32 // bits, 256 // bits
    cells = {native.wgmma_a_cell(bits, *p) for p in itertools.product(range(4), range(32), range(4), range(e))}
    assert cells == set(itertools.product(range(64), range(k)))
    assert native.wgmma_a_cell(bits, 2, 0, 1, 0) == (40, 0)


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_stmatrix_and_movmatrix(native, count, trans):
    rng = np.random.default_rng(count)
    memory = rng.integers(0, 256, 4096, dtype=np.uint8)
    addresses = (rng.permutation(256)[: 8 * count] * 16).astype(np.uint32)
    got = native.ldmatrix(count, trans, memory, list(addresses))
    for i in range(count):
        matrix = np.stack([memory[a : a + 16].view(np.uint16) for a in addresses[8 * i : 8 * i + 8]])
        want = (matrix.T if trans else matrix).reshape(-1).view(np.uint32)  # lane 4 g + t: row g, pair t
        np.testing.assert_array_equal(got[i], want)
        if not trans:
            transposed = np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint32)
            np.testing.assert_array_equal(native.movmatrix(got[i]), transposed)
    stored = native.stmatrix(count, trans, np.zeros_like(memory), list(addresses), got)
    mask = np.zeros(4096, bool)
    for a in addresses:
        mask[a : a + 16] = True
    np.testing.assert_array_equal(stored[mask], memory[mask])
    assert not stored[~mask].any()
    other = native.ldmatrix(count, not trans, memory, list(addresses))
    assert (other != got).any()  # sabotage: the wrong .trans is visible
