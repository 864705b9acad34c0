"""Approximate instructions against the errors the PTX ISA states, swept over the whole of each format.

The ISA bounds what hardware may return; the emulator returns the nearest number, or with rough=True others within the bound. Both are asserted: the bound by `within`,
which says what any implementation must meet, and the nearest number by references in extended precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import lanewise, same_floats

INF, NAN = np.inf, np.nan
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, str], np.ndarray]  # argument, result, exact value, type -> holds


@dataclass(frozen=True)
class Function:
    """A function, the error the ISA allows it (with the section) and the results it lists."""

    exact: Callable[[np.ndarray], np.ndarray]
    within: Rule
    special: tuple[float, float, float, float]  # at -Inf, -0, +0, +Inf


def ulp(values: np.ndarray, t: str) -> np.ndarray:
    """The distance between neighbours at each value (that of subnormals below the normal ones)."""
    info = ml_dtypes.finfo(DTYPES[t])
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.abs(values).astype(np.float64)))
    return np.exp2(np.maximum(np.where(np.isfinite(exponent), exponent, info.minexp), info.minexp) - info.nmant)


def ulps(count: float) -> Rule:
    """So many units in the last place of the nearest number, over the full range."""

    def holds(a, got, exact, t):
        nearest = rounded(exact, t)
        finite = np.isfinite(nearest.astype(np.float64))
        return np.where(finite, np.abs(got - nearest.astype(np.longdouble)) <= count * ulp(nearest, t), got == nearest)

    return holds


def relative(bound: float) -> Rule:
    """Relative to normal results; of subnormal ones a unit in the last place."""

    def holds(a, got, exact, t):
        subnormal = np.abs(exact) < float(ml_dtypes.finfo(DTYPES[t]).tiny)
        return np.abs(got - exact) <= np.where(subnormal, ulp(exact, t), bound * np.abs(exact))

    return holds


def absolute(bound: float, low: float = -INF, high: float = INF) -> Rule:
    def holds(a, got, exact, t):
        return (np.abs(got - exact) <= bound) | (a < low) | (a > high)

    return holds


def both(*rules: Rule) -> Rule:
    return lambda *args: np.logical_and.reduce([rule(*args) for rule in rules])


def of_logarithm(a, got, exact, t):
    """PTX ISA 9.7.3.20: 2^-22, absolute for arguments in (0.5, 2), else relative."""
    inside = (a > 0.5) & (a < 2)
    return np.abs(got - exact) <= np.where(inside, 2.0**-22, 2.0**-22 * np.abs(exact))


# PTX ISA 9.7.3.18 and 19: the bound depends on the range, and beyond 100 pi there is none.
TRIGONOMETRIC = both(absolute(2**-20.5, -2 * np.pi, 2 * np.pi), absolute(2**-14.7, -100 * np.pi, 100 * np.pi))

FUNCTIONS = {
    "rcp": Function(lambda a: 1 / a, ulps(1), (-0.0, -INF, INF, 0.0)),  # 9.7.3.13
    "sqrt": Function(np.sqrt, relative(2**-23), (NAN, -0.0, 0.0, INF)),  # 9.7.3.15
    "rsqrt": Function(lambda a: 1 / np.sqrt(a), relative(2**-22.9), (NAN, -INF, INF, 0.0)),  # 9.7.3.16
    "sin": Function(np.sin, TRIGONOMETRIC, (NAN, -0.0, 0.0, NAN)),
    "cos": Function(np.cos, TRIGONOMETRIC, (NAN, 1.0, 1.0, NAN)),
    "lg2": Function(np.log2, of_logarithm, (NAN, -INF, -INF, INF)),
    "ex2": Function(np.exp2, ulps(2), (0.0, 1.0, 1.0, INF)),  # 9.7.3.21
    "tanh": Function(np.tanh, relative(2**-11), (-1.0, -0.0, 0.0, 1.0)),  # 9.7.3.22
}


def corner_cases(name: str, t: str, ftz: bool) -> tuple[np.ndarray, np.ndarray]:
    """The ISA's tables: -Inf, the zeros, +Inf, NaN; negative numbers; with .ftz subnormals are zeros of their sign."""
    low, minus, plus, high = FUNCTIONS[name].special
    cases = [(-INF, low), (-0.0, minus), (0.0, plus), (INF, high), (NAN, NAN)]
    if name in ("sqrt", "rsqrt", "lg2"):
        cases.append((-1.0, NAN))
    if ftz:
        subnormal = float(ml_dtypes.finfo(DTYPES[t]).tiny) / 4
        cases += [(-subnormal, minus), (subnormal, plus)]
    arguments, wanted = np.array(cases).T
    return np.ascontiguousarray(arguments.astype(DTYPES[t])), np.ascontiguousarray(wanted.astype(DTYPES[t]))


def check_corner_cases(instruction: str, t: str) -> None:
    name = instruction.split(".")[0]
    a, want = corner_cases(name, t, "ftz" in instruction)
    bits = BITS[a.itemsize]
    got = lanewise(f"{instruction} $d, $0;", [a.view(bits)], bits).view(DTYPES[t])
    same_floats(got, want)
    if instruction != "rsqrt.approx.f64":  # the ISA leaves its NaN open
        canonical = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FFFFFFF00000000}[t]
        assert (got.view(bits)[np.isnan(want.astype(np.float64))] == canonical).all()


def rounded(exact: np.ndarray, t: str) -> np.ndarray:
    """The nearest number of the type."""
    with np.errstate(all="ignore"):
        if t == "f16":  # numpy rounds the extended type to f32 on its way to f16
            return exact.astype(np.float64).astype(np.float16)
        if t != "bf16":
            return exact.astype(DTYPES[t])
        odd = exact.astype(np.float32)  # to odd first, so that rounding twice is rounding once
        bits = odd.view(np.uint32).copy()
        inexact = odd.astype(np.longdouble) != exact
        away = np.abs(odd.astype(np.longdouble)) > np.abs(exact)
        bits = np.where(inexact & np.isfinite(odd), (bits - (away & (bits & 1 == 0))) | 1, bits).astype(np.uint32)
        return bits.view(np.float32).astype(ml_dtypes.bfloat16)


def flushed(a: np.ndarray, t: str) -> np.ndarray:
    tiny = float(ml_dtypes.finfo(DTYPES[t]).tiny)
    with np.errstate(all="ignore"):
        return np.where(np.abs(a.astype(np.float64)) < tiny, np.copysign(a.dtype.type(0), a), a).astype(a.dtype)


def sweep32() -> np.ndarray:
    """Both signs of every exponent with 64 mantissas each, and every 32nd mantissa of three binades."""
    rng = np.random.default_rng(0)
    mantissas = np.concatenate([[0, 1, 0x7FFFFF, 0x400000], rng.integers(0, 1 << 23, 60)]).astype(np.uint32)
    coarse = (np.arange(256, dtype=np.uint32)[:, None] << 23 | mantissas).ravel()
    dense = np.concatenate(
        [np.uint32(e << 23) + np.arange(e % 32, 1 << 23, 32, dtype=np.uint32) for e in (126, 127, 129)]
    )
    return np.concatenate([coarse, coarse | 1 << 31, dense, dense[::7] | 1 << 31]).astype(np.uint32).view(np.float32)


def check(instruction: str, f: Function, t: str, a: np.ndarray, ftz: bool, rough: bool = False) -> None:
    bits = BITS[a.itemsize]
    got = lanewise(f"{instruction} $d, $0;", [a.view(bits)], bits, rough=rough).view(DTYPES[t])
    given = flushed(a, t) if ftz else a
    with np.errstate(all="ignore"):
        exact = f.exact(given.astype(np.longdouble))
        nearest = flushed(rounded(exact, t), t) if ftz else rounded(exact, t)
        stated = np.isfinite(nearest.astype(np.float64)) & ((nearest != 0) | (exact == 0))
        holds = f.within(given.astype(np.float64), got.astype(np.longdouble), exact, t)
    assert holds[stated].all(), (given[stated & ~holds][:5], got[stated & ~holds][:5])
    if rough:
        normal = stated & (np.abs(nearest) >= np.finfo(np.float32).tiny) & (np.abs(given) > 2.0**-10)
        assert (got[normal] != nearest[normal]).mean() > 0.1
    else:
        same_floats(got, nearest)


F32 = [(name, ftz) for name in FUNCTIONS for ftz in ("", ".ftz") if (name, ftz) != ("tanh", ".ftz")]


@pytest.mark.parametrize("name, ftz", F32)
def test_f32_over_all_exponents(name: str, ftz: str) -> None:
    check(f"{name}.approx{ftz}.f32", FUNCTIONS[name], "f32", sweep32(), bool(ftz))


@pytest.mark.parametrize("name, ftz", F32)
def test_rough_ones_err_within_the_bound(name: str, ftz: str) -> None:
    check(f"{name}.approx{ftz}.f32", FUNCTIONS[name], "f32", sweep32(), bool(ftz), rough=True)


@pytest.mark.parametrize("name, ftz", F32)
def test_listed_results(name: str, ftz: str) -> None:
    check_corner_cases(f"{name}.approx{ftz}.f32", "f32")


# PTX ISA 9.7.4.9 and 9.7.4.10. The relative errors of ex2 are those of normal results.
HALVES = {
    ("ex2.approx.f16", "f16"): Function(np.exp2, relative(2**-9.9), FUNCTIONS["ex2"].special),
    ("ex2.approx.ftz.bf16", "bf16"): Function(np.exp2, relative(2**-7), FUNCTIONS["ex2"].special),
    ("tanh.approx.f16", "f16"): Function(np.tanh, absolute(2**-10.987), FUNCTIONS["tanh"].special),
    ("tanh.approx.bf16", "bf16"): Function(np.tanh, absolute(2**-8), FUNCTIONS["tanh"].special),
}


@pytest.mark.parametrize("packed", ["", "x2"])
@pytest.mark.parametrize("instruction, t", HALVES)
def test_every_half(instruction: str, t: str, packed: str) -> None:
    """All 65,536 of them; packed, in both halves of a register at once."""
    f, a = HALVES[instruction, t], np.arange(1 << 16, dtype=np.uint16).view(DTYPES[t])
    if not packed:
        check(instruction, f, t, a, "ftz" in instruction)
        check_corner_cases(instruction, t)
        return
    one = lanewise(f"{instruction} $d, $0;", [a.view(np.uint16)], np.uint16)
    mixed = np.random.default_rng(0).permutation(1 << 16).astype(np.uint32)
    both_halves = np.arange(1 << 16, dtype=np.uint32) << 16 | mixed
    assert np.array_equal(
        lanewise(f"{instruction}x2 $d, $0;", [both_halves], np.uint32), one.astype(np.uint32) << 16 | one[mixed]
    )


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Every exponent against every exponent, twice, with random mantissas and signs."""
    rng = np.random.default_rng(1)
    first, second = np.meshgrid(np.arange(256, dtype=np.uint32), np.arange(256, dtype=np.uint32), indexing="ij")
    a, b = (np.tile(e.ravel(), 2) << 23 | rng.integers(0, 1 << 23, e.size * 2) for e in (first, second))
    signs = rng.integers(0, 2, (2, a.size)) << 31
    return tuple(v.astype(np.uint32).view(np.float32) for v in (a | signs[0], b | signs[1]))


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("kind", ["approx", "full"])
def test_divisions(kind: str, ftz: str) -> None:
    """PTX ISA 9.7.3.8: 2 ulp; .approx for divisors in [2^-126, 2^126], and zero or NaN for larger ones."""
    a, b = pairs()
    got = lanewise(f"div.{kind}{ftz}.f32 $d, $0, $1;", [a, b], np.float32)
    if ftz:
        a, b = flushed(a, "f32"), flushed(b, "f32")
    with np.errstate(all="ignore"):
        exact = a.astype(np.longdouble) / b.astype(np.longdouble)
        nearest = flushed(rounded(exact, "f32"), "f32") if ftz else rounded(exact, "f32")
        size = np.abs(b)
        large = (size > 2.0**126) & np.isfinite(b) if kind == "approx" else np.zeros(len(a), bool)
        stated = np.isfinite(exact) & (nearest != 0) & ((size >= 2.0**-126) & (size <= 2.0**126) | (kind == "full"))
        holds = ulps(2)(a, got.astype(np.longdouble), exact, "f32")
        zero = np.copysign(np.float32(0), a) * np.copysign(np.float32(1), b)
        want = np.where(large, np.where(np.isfinite(a), zero, np.float32(NAN)), nearest)
    assert large.sum() > 500 or kind == "full"
    assert holds[stated & ~large].all()
    same_floats(got, want)


@pytest.mark.parametrize("name", ["rcp", "rsqrt"])
def test_gross_f64(name: str) -> None:
    """PTX ISA 9.7.3.14 and 9.7.3.17: upper word to upper word, a unit of its last place; the lower words count for nothing."""
    rng = np.random.default_rng(2)
    exponents = np.repeat(np.arange(2048, dtype=np.uint64), 24) << 52
    mantissas, signs = (rng.integers(0, n, exponents.size, dtype=np.uint64) for n in (1 << 52, 2))
    a = (exponents | mantissas | signs << 63).view(np.float64)
    got = lanewise(f"{name}.approx.ftz.f64 $d, $0;", [a], np.float64)
    assert not (got.view(np.uint64) & 0xFFFFFFFF).any()
    assert (got[np.isnan(got)].view(np.uint64) == 0x7FFFFFFF00000000).all()
    upper = flushed((a.view(np.uint64) & 0xFFFFFFFF00000000).view(np.float64), "f64")
    with np.errstate(all="ignore"):
        exact = flushed(FUNCTIONS[name].exact(upper), "f64")
    finite = np.isfinite(exact) & (exact != 0)
    assert (np.abs(got[finite] - exact[finite]) <= 2.0**-20 * np.abs(exact[finite])).all()
    same_floats(got[~finite], exact[~finite])
    check_corner_cases(f"{name}.approx.ftz.f64", "f64")


def test_rsqrt_f64() -> None:
    """PTX ISA 9.7.3.16 states no error for it; it is emulated in software, and here within two roundings."""
    a = np.abs(np.random.default_rng(3).integers(0, 1 << 63, 40000, dtype=np.uint64).view(np.float64))
    got = lanewise("rsqrt.approx.f64 $d, $0;", [a], np.float64)
    with np.errstate(all="ignore"):
        exact = 1 / np.sqrt(a.astype(np.longdouble))
    finite = np.isfinite(exact)
    assert (np.abs(got[finite] - exact[finite]) <= 2.0**-52 * exact[finite]).all()
    check_corner_cases("rsqrt.approx.f64", "f64")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bounds_refuse(name: str) -> None:
    """A result four times too far off, a neighbour's argument and zero are outside."""
    f, a = FUNCTIONS[name], np.linspace(2.25, 6, 1001)
    exact = f.exact(a.astype(np.longdouble))
    off = {"tanh": 2**-9, "sin": 2**-18, "cos": 2**-18}.get(name, 2**-20)
    shifted = exact + off if name in ("sin", "cos") else exact * (1 + off)
    for wrong in (shifted, f.exact(a.astype(np.longdouble) + 0.1) if name != "tanh" else -exact, 0 * exact):
        assert not f.within(a, wrong, exact, "f32").all()
