"""mma.sp and wgmma.mma_async.sp against plain products with the dense A, metadata written out as the ISA draws them."""

from __future__ import annotations

import numpy as np
import pytest
from canonical import layouts
from tensor_operands import BITS, pack_lanes, random_operand
from test_mma import accumulators, layout
from test_mma import to_registers as mma_registers
from test_wgmma import A_AT, B_AT, BASE, SIZE, descriptor, register_a, to_registers

MMA = [
    *[(k, a, a, d) for k in (16, 32) for a, d in (("f16", "f16"), ("f16", "f32"), ("bf16", "f32"))],
    *[(k, "tf32", "tf32", "f32") for k in (8, 16)],
    *[(64, a, b, "f32") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")],
    *[(k, a, b, "s32") for k in (32, 64) for a in ("s8", "u8") for b in ("s8", "u8")],
    *[(k, a, b, "s32") for k in (64, 128) for a in ("s4", "u4") for b in ("s4", "u4")],
]
WGMMA = [("f16", "f16", "f16"), ("f16", "f16", "f32"), ("bf16", "bf16", "f32"), ("tf32", "tf32", "f32"),
         ("e4m3", "e5m2", "f32"), ("e5m2", "e4m3", "f16"), ("s8", "u8", "s32"), ("u8", "u8", "s32")]  # fmt: skip


def chunk(kind: str) -> int:
    return {"tf32": 2, "s4": 8, "u4": 8}.get(kind, 4)


def selectors(kind: str, k: int) -> int:
    return 16 * chunk(kind) // k


def choose(rng: np.random.Generator, kind: str, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For every row, the dense columns kept, in order, [rows, k / 2], and the four bits of each chunk."""
    size = chunk(kind)
    columns, nibbles = np.zeros((rows, k // 2), int), np.zeros((rows, k // size), np.uint32)
    for row in range(rows):
        for c in range(k // size):
            if kind == "tf32":
                keep = int(rng.integers(2))
                nibbles[row, c], kept = (0b1110 if keep else 0b0100), [keep]
            else:
                first, second = sorted(rng.choice(4, 2, replace=False).tolist())
                nibbles[row, c] = first | second << 2
                kept = [first, second] if size == 4 else [2 * first, 2 * first + 1, 2 * second, 2 * second + 1]
            columns[row, c * size // 2 : (c + 1) * size // 2] = [c * size + i for i in kept]
    return columns, nibbles


def metadata(rng: np.random.Generator, kind: str, nibbles: np.ndarray, selector: int) -> np.ndarray:
    """16 rows of chunks to the 32 lanes; lanes that the selector does not name hold noise."""
    out = rng.integers(0, 1 << 32, 32, dtype=np.uint32)
    chunks = nibbles.shape[1]
    word = lambda part: sum(int(v) << 4 * i for i, v in enumerate(part))  # noqa: E731
    carrying = chunks // 4
    for g in range(8):
        words = []
        if BITS[kind] >= 16:  # 16 bits of each of the two rows
            for at in range(0, chunks, 4):
                words.append(word(nibbles[g, at : at + 4]) | word(nibbles[g + 8, at : at + 4]) << 16)
        else:
            for at in range(0, chunks, 8):
                words += [word(nibbles[g, at : at + 8]), word(nibbles[g + 8, at : at + 8])]
        assert len(words) == carrying
        out[4 * g + selector * carrying : 4 * g + (selector + 1) * carrying] = words
    return out


def spread(stored: np.ndarray, columns: np.ndarray, k: int) -> np.ndarray:
    dense = np.zeros((len(stored), k))
    np.put_along_axis(dense, columns, stored, 1)
    return dense


@pytest.mark.parametrize("k, a, b, d", MMA)
def test_every_shape_of_mma_sp(native, k, a, b, d):
    for selector in range(selectors(a, k)):
        rng = np.random.default_rng(selector)
        bits_a, va = random_operand(rng, a, (16, k // 2))
        bits_b, vb = random_operand(rng, b, (k, 8))
        columns, nibbles = choose(rng, a, 16, k)
        c = rng.integers(-50, 50, (16, 8)).astype(np.float64)
        rows, cols = accumulators(16)
        got = native.mma_sp(
            16, 8, k, a, b, d, selector, pack_lanes(layout(16, k // 2, BITS[a], True), bits_a, BITS[a]),
            pack_lanes(layout(16, k, BITS[b], False), bits_b, BITS[b]), mma_registers(c[rows, cols], d),
            metadata(rng, a, nibbles, selector),
        )  # fmt: skip
        want = spread(va, columns, k) @ vb + c
        np.testing.assert_array_equal(got, mma_registers(want[rows, cols], d))


def test_what_metadata_do_not_choose_is_not_multiplied(native):
    """An infinity of B in a column of K that no row keeps: 0 times it would be NaN."""
    rng = np.random.default_rng(3)
    columns, nibbles = np.tile(np.arange(16) // 2 * 4 + np.arange(16) % 2, (16, 1)), np.full((16, 8), 0b0100, np.uint32)
    bits_a, va = random_operand(rng, "f16", (16, 16))
    bits_b, vb = random_operand(rng, "f16", (32, 8))
    bits_b[2::4], bits_b[3::4] = 0x7C00, 0x7E00
    rows, cols = accumulators(16)
    got = native.mma_sp(
        16, 8, 32, "f16", "f16", "f32", 1, pack_lanes(layout(16, 16, 16, True), bits_a, 16),
        pack_lanes(layout(16, 32, 16, False), bits_b, 16), np.zeros((4, 32), np.uint32), metadata(rng, "f16", nibbles, 1),
    )  # fmt: skip
    want = va @ vb[columns[0]]
    np.testing.assert_array_equal(got, mma_registers(want[rows, cols], "f32"))


@pytest.mark.parametrize("k, a, selector", [(16, "f16", 4), (32, "f16", 2), (64, "s8", 1), (128, "u4", 1)])
def test_selectors_that_do_not_exist_are_refused(native, k, a, selector):
    empty = np.zeros((1, 32), np.uint32)
    with pytest.raises(ValueError, match=f"below {selector}, got {selector}"):
        native.mma_sp(16, 8, k, a, a, "f32" if a == "f16" else "s32", selector, empty, empty, empty, empty[0])


@pytest.mark.parametrize("in_registers", [False, True])
@pytest.mark.parametrize("a, b, d", WGMMA)
def test_wgmma_sp_over_every_swizzle_of_both_operands(native, a, b, d, in_registers):
    stored = 256 // BITS[a]
    k, n = 2 * stored, 40 if d != "s32" else 48
    majors = (False, True) if BITS[a] == 16 else (False,)
    # A K-major B needs 64 bytes of K in one swizzle row; the ISA says nothing of a 32-byte swizzle.
    all_b = [lb for lb in layouts(n, 64, majors, B_AT) if lb.mn_major or lb.width != 32]
    all_a = layouts(64, 32, majors, A_AT)
    for index, lb in enumerate(all_b):
        la = all_a[index % len(all_a)]
        rng = np.random.default_rng(index)
        selector = index % selectors(a, k)
        bits_a, va = random_operand(rng, a, (64, stored))
        bits_b, vb = random_operand(rng, b, (k, n))
        columns, nibbles = choose(rng, a, 64, k)
        c = rng.integers(-20, 20, (64, n)).astype(np.float64)
        memory = rng.integers(0, 256, SIZE, dtype=np.uint8)
        la.write(memory, BASE, bits_a)
        lb.write(memory, BASE, np.ascontiguousarray(bits_b.T))
        words = {
            "n": n, "a": a, "b": b, "d": d, "sparse": True, "selector": selector, "a_in_registers": in_registers,
            "transpose_a": la.mn_major and not in_registers, "transpose_b": lb.mn_major,
            "metadata": np.stack([metadata(rng, a, nibbles[16 * w : 16 * w + 16], selector) for w in range(4)]),
        }  # fmt: skip
        registers = register_a(bits_a, BITS[a]) if in_registers else np.zeros((0, 32), np.uint32)
        reason, got = native.wgmma(
            memory,
            BASE,
            registers,
            descriptor(native, la),
            descriptor(native, lb),
            True,
            to_registers(c, d),
            1,
            **words,
        )
        assert not reason
        np.testing.assert_array_equal(got, to_registers(spread(va, columns, k) @ vb + c, d), err_msg=f"{la} {lb}")
