"""mma.sync against a plain matrix product, through layouts written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from tensor_operands import BITS, pack_lanes, random_operand

SHAPES = [
    *[(16, k, a, a, d) for k in (8, 16) for a, d in (("f16", "f16"), ("f16", "f32"), ("bf16", "f32"))],
    *[(16, k, "tf32", "tf32", "f32") for k in (4, 8)],
    *[(16, k, a, b, d) for k in (16, 32) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2") for d in ("f16", "f32")],
    *[(m, k, a, b, "s32") for m, k in ((8, 16), (16, 16), (16, 32)) for a in ("s8", "u8") for b in ("s8", "u8")],
    *[(m, k, a, b, "s32") for m, k in ((8, 32), (16, 32), (16, 64)) for a in ("s4", "u4") for b in ("s4", "u4")],
    *[(m, k, "b1", "b1", "s32") for m, k in ((8, 128), (16, 128), (16, 256))],
]


def layout(m: int, k: int, bits: int, is_a: bool) -> np.ndarray:
    """[register, lane, element, (row, col)]: 4-byte pieces t of rows g, stacked along m (A only) and then k."""
    e = max(1, 32 // bits)
    halves = m // 8 if is_a else 1
    count = halves * k // (4 * e)
    reg, lane, element = np.meshgrid(np.arange(count), np.arange(32), np.arange(e), indexing="ij")
    row = lane // 4 + reg % halves * 8
    col = reg // halves * 4 * e + lane % 4 * e + element
    return np.stack([row, col], -1) if is_a else np.stack([col, row], -1)


def accumulators(m: int) -> tuple[np.ndarray, np.ndarray]:
    reg, lane = np.meshgrid(np.arange(m // 4), np.arange(32), indexing="ij")
    return lane // 4 + reg // 2 * 8, lane % 4 * 2 + reg % 2


def to_registers(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        half = values.astype(np.float16).view(np.uint16).astype(np.uint32)
        return half[0::2] | half[1::2] << 16
    return values.astype(np.float32).view(np.uint32) if kind == "f32" else values.astype(np.int64).astype(np.uint32)


def run(native, m, k, a, b, d, bits_a, bits_b, c, satfinite=False, xor_popc=False):
    ra = pack_lanes(layout(m, k, BITS[a], True), bits_a, BITS[a])
    rb = pack_lanes(layout(m, k, BITS[b], False), bits_b, BITS[b])
    rows, cols = accumulators(m)
    rc = to_registers(c[rows, cols], d)
    assert native.mma_registers(m, 8, k, a, b, d) == (len(ra), len(rb), len(rc))
    return native.mma(m, 8, k, a, b, d, satfinite, xor_popc, ra, rb, rc), rows, cols


@pytest.mark.parametrize("m, k, a, b, d", SHAPES)
def test_every_shape_is_the_matrix_product(native, m, k, a, b, d):
    rng = np.random.default_rng(7)
    assert native.mma_reason(m, 8, k, a, b, d, False, False) == ""
    bits_a, va = random_operand(rng, a, (m, k))
    bits_b, vb = random_operand(rng, b, (k, 8))
    c = rng.integers(-50, 50, (m, 8)).astype(np.float64)
    got, rows, cols = run(native, m, k, a, b, d, bits_a, bits_b, c)
    want = va @ vb + c
    np.testing.assert_array_equal(got, to_registers(want[rows, cols], d))
    if m == 16:  # sabotage: rows g and g + 8 exchanged must not pass
        assert (got != to_registers(want[rows ^ 8, cols], d)).any()


@pytest.mark.parametrize("m, k", [(8, 4), (16, 4), (16, 8), (16, 16)])
def test_f64(native, m, k):
    rng = np.random.default_rng(3)
    va, vb, c = rng.integers(-9, 9, (m, k)) / 8, rng.integers(-9, 9, (k, 8)) / 8, rng.integers(-9, 9, (m, 8)) / 8
    la, lb = layout(m, k, 64, True)[:, :, 0], layout(m, k, 64, False)[:, :, 0]
    rows, cols = accumulators(m)
    got = native.mma_f64(m, 8, k, va[la[..., 0], la[..., 1]], vb[lb[..., 0], lb[..., 1]], c[rows, cols])
    np.testing.assert_array_equal(got, (va @ vb + c)[rows, cols])


def test_accumulation_is_fused_and_ascending(native):
    """1 + 2^-24 stays 1; the order decides, and this emulator's is k ascending with one rounding a step."""
    k = 16
    va = np.zeros((16, k))
    va[:, 0], va[:, 1], va[:, 2] = 2.0**-12, 2.0**-12, 1.0
    vb = np.zeros((k, 8))
    vb[0], vb[1], vb[2] = 2.0**-12, 2.0**-12, 1.0
    bits_a, bits_b = (v.astype(np.float16).view(np.uint16) for v in (va, vb))
    got, *_ = run(native, 16, k, "f16", "f16", "f32", bits_a, bits_b, np.zeros((16, 8)))
    assert (got.view(np.float32) == np.float32(1 + 2.0**-23)).all()  # small terms first: kept
    got, *_ = run(native, 16, k, "f16", "f16", "f32", bits_a, bits_b, np.ones((16, 8)) * 1.0)
    assert (got.view(np.float32) == np.float32(2)).all()  # each is lost against 1


def test_f16_accumulators_round_once(native):
    va, vb = np.ones((16, 8)), np.full((8, 8), 0.5)
    bits_a, bits_b = (v.astype(np.float16).view(np.uint16) for v in (va, vb))
    got, *_ = run(native, 16, 8, "f16", "f16", "f16", bits_a, bits_b, np.full((16, 8), 2048.0))
    assert (got.view(np.float16) == np.float16(2052)).all()  # adding 0.5 eight times in f16 would stay at 2048


@pytest.mark.parametrize("satfinite", [False, True])
def test_integer_sums_wrap_or_saturate(native, satfinite):
    for sign, kind, value in ((1, "u8", 255), (-1, "s8", 128)):
        bits_a = np.full((16, 32), value, np.uint8)
        va = 255.0 if kind == "u8" else -128.0
        bits_b = np.full((32, 8), 100, np.uint8)
        c = np.full((16, 8), float(sign * (2**31 - 1)))
        got, *_ = run(native, 16, 32, kind, "u8", "s32", bits_a, bits_b, c, satfinite)
        exact = int(c[0, 0]) + int(32 * va * 100)
        limit = 2**31 - 1 if sign > 0 else -(2**31)
        want = limit if satfinite else (exact + 2**31) % 2**32 - 2**31
        assert (got.view(np.int32) == want).all()


def test_xor_popc(native):
    rng = np.random.default_rng(5)
    bits_a, bits_b = rng.integers(0, 2, (16, 256)), rng.integers(0, 2, (256, 8))
    got, rows, cols = run(native, 16, 256, "b1", "b1", "s32", bits_a, bits_b, np.zeros((16, 8)), xor_popc=True)
    want = (bits_a[:, :, None] ^ bits_b[None]).sum(1)
    np.testing.assert_array_equal(got, want[rows, cols])


@pytest.mark.parametrize(
    "m, n, k, a, b, d, satfinite, why",
    [
        (16, 8, 32, "f16", "f16", "f32", False, "no such shape"),
        (16, 16, 16, "f16", "f16", "f32", False, "no such shape"),
        (16, 8, 16, "f16", "bf16", "f32", False, "no such shape"),
        (16, 8, 16, "bf16", "bf16", "f16", False, "no such shape"),
        (8, 8, 4, "f16", "f16", "f32", False, "no such shape"),
        (16, 8, 16, "f16", "f16", "f32", True, "integer operands"),
    ],
)
def test_reasons(native, m, n, k, a, b, d, satfinite, why):
    assert why in native.mma_reason(m, n, k, a, b, d, satfinite, False)


@pytest.mark.parametrize("n", [8, 24, 64, 104])
def test_the_vector_kernel_gives_the_bits_of_the_portable_one(native, n):
    """Random reals, with subnormal and infinite sums among them: every rounding must agree."""
    rng = np.random.default_rng(n)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((64, 16), (n, 16)))
    a[3], a[20], b[5] = a[3] * np.float32(1e-30), np.inf, b[5] * np.float32(1e-12)
    c = rng.standard_normal((4 * n // 2, 32)).astype(np.float32)
    got, want = (native.fragment_gemm(a, b, c, portable) for portable in (False, True))
    np.testing.assert_array_equal(got, want)
    finite = np.isfinite(want)
    assert finite.any()
    assert not finite.all()
