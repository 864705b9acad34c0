"""Sums as an H100's tensor cores make them, against the published model in exact arithmetic (arXiv 2512.07004, H100TC):
terms cut off so many bits below the leading one of the largest, added exactly, the sum cut off to 24 bits."""

from fractions import Fraction

import numpy as np
import pytest


def cut(x: Fraction, unit: Fraction) -> Fraction:
    """Toward zero, to a multiple of `unit`."""
    return int(x / unit) * unit


def leading(x: Fraction) -> int:
    """The exponent of the leading bit."""
    x, e = abs(x), 0
    while x >= 2:
        x, e = x / 2, e + 1
    while x < 1:
        x, e = x * 2, e - 1
    return e


def hopper(a: np.ndarray, b: np.ndarray, c: np.float32, kept: int) -> float:
    terms = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)] + [Fraction(float(c))]
    if not any(terms):
        return 0.0
    unit = Fraction(2) ** (max(leading(t) for t in terms if t) - kept)
    total = sum(cut(t, unit) for t in terms)
    return float(cut(total, Fraction(2) ** (leading(total) - 23))) if total else 0.0


@pytest.mark.parametrize("k, bits, kept", [(16, 8, 25), (8, 11, 25), (16, 11, 25), (32, 4, 13)])
def test_against_exact_arithmetic(native, k, bits, kept):
    rng = np.random.default_rng(k)
    n = 16

    def matrix(rows):  # `bits` significant bits, exponents far apart
        whole = rng.integers(1 << bits - 1, 1 << bits, (rows, k)) * rng.choice([-1, 1], (rows, k))
        return np.ldexp(whole.astype(np.float64), rng.integers(-8, 3, (rows, k))).astype(np.float32)

    a, b = matrix(16), matrix(n)
    a[3, 1:] = 0
    c = (rng.standard_normal((n // 2, 32)) * np.exp2(rng.integers(-4, 20, (n // 2, 32)))).astype(np.float32)
    got = native.fragment_gemm(a, b, c, kept=kept)
    same = 0
    for register in range(n // 2):
        for lane in range(32):
            row, col = lane // 4 + 8 * (register // 2 % 2), 8 * (register // 4) + 2 * (lane % 4) + register % 2
            assert got[register, lane] == hopper(a[row], b[col], c[register, lane], kept), (row, col)
            same += got[register, lane] == native.fragment_gemm(a, b, c)[register, lane]
    assert same < got.size / 2  # fused sums are others


def test_what_a_long_sum_of_fp8_loses(native):
    """Beside 2^14 a product of 1 is below the last bit: however many come, the sum stands still."""
    ones, c = np.ones((16, 32), np.float32), np.full((4, 32), 2.0**14, np.float32)
    assert (native.fragment_gemm(ones, ones[:8], c, kept=13) == 2.0**14).all()
    assert (native.fragment_gemm(ones, ones[:8], c, kept=25) == 2.0**14 + 32).all()
    assert (native.fragment_gemm(ones, ones[:8], c / 2, kept=13) == 2.0**13 + 32).all()


def test_infinities_and_nan(native):
    a, b, c = np.ones((16, 16), np.float32), np.ones((8, 16), np.float32), np.zeros((4, 32), np.float32)
    a[0, 3], a[1, 3], a[2, 5] = np.inf, -np.inf, np.nan
    got = native.fragment_gemm(a, b, c, kept=25)[0, ::4]  # rows 0 to 7
    assert got[0] == np.inf
    assert got[1] == -np.inf
    assert np.isnan(got[2])
    assert (got[3:] == 16).all()
