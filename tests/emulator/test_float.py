"""Floating-point arithmetic: bit for bit against exact rational arithmetic (approximations: test_approximations.py)."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import floats, lanewise, same_floats
from exact_rounding import round_fraction

DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
BITS = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "f64": np.uint64}


def columns_of(t: str, count: int, random: int = 14) -> list[np.ndarray]:
    if t == "bf16":  # edges and random bits of the upper half of f32
        return [
            c.view(np.uint32).__rshift__(16).astype(np.uint16).view(ml_dtypes.bfloat16)
            for c in floats(np.float32, count, random)
        ]
    return floats(DTYPES[t], count, random)


def exact(op: str, t: str, mode: str, *values: float) -> float:
    """One operation with one rounding; specials and signs of zero by the host's f64, which has them right."""
    with np.errstate(all="ignore"):
        if op == "sub":
            values, op = (values[0], -values[1]), "add"
        a, b, *c = (np.float64(v) for v in values)
        special = {"add": a + b, "mul": a * b, "div": a / b, "fma": a * b + c[0] if c else None}[op]
    if not all(math.isfinite(v) for v in values) or (op == "div" and b == 0):
        if op == "fma" and all(map(math.isfinite, (a, b))) and not math.isfinite(c[0]):
            return float(c[0])  # a finite product, however large, added to an infinity
        return float(special)
    fa, fb = Fraction(float(a)), Fraction(float(b))
    true = {
        "add": lambda: fa + fb,
        "mul": lambda: fa * fb,
        "div": lambda: fa / fb,
        "fma": lambda: fa * fb + Fraction(float(c[0])),
    }[op]()
    if true == 0:
        if op in ("mul", "div"):
            return float(math.copysign(0.0, a) * math.copysign(1.0, b))
        signs = (
            (math.copysign(1, a), math.copysign(1, b))
            if op == "add"
            else (math.copysign(1, a) * math.copysign(1, b), math.copysign(1, c[0]))
        )
        addends_zero = (fa == 0 and fb == 0) if op == "add" else (fa * fb == 0 and c[0] == 0)
        if signs[0] == signs[1] and addends_zero:
            return 0.0 * signs[0]
        return -0.0 if mode == "rm" else 0.0
    return round_fraction(true, t, mode)


def check(instruction: str, op: str, t: str, mode: str, columns: list[np.ndarray]) -> None:
    got = lanewise(instruction, [c.view(BITS[t]) for c in columns], BITS[t]).view(DTYPES[t])
    want = np.array([exact(op, t, mode, *(float(v) for v in row)) for row in zip(*columns, strict=True)])
    with np.errstate(all="ignore"):
        same_floats(got, want.astype(DTYPES[t]))


@pytest.mark.parametrize("t", DTYPES)
@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_nearest(op: str, t: str) -> None:
    check(f"{op}.{t} $d, $0, $1;", op, t, "rn", columns_of(t, 2))


@pytest.mark.parametrize("t", DTYPES)
def test_fma_nearest(t: str) -> None:
    check(f"fma.rn.{t} $d, $0, $1, $2;", "fma", t, "rn", columns_of(t, 3))


def test_fma_of_f16_rounds_once() -> None:
    rng = np.random.default_rng(5)
    a, b, c = (rng.integers(0, 2**16, 20000, dtype=np.uint16).view(np.float16) for _ in range(3))
    keep = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    check("fma.rn.f16 $d, $0, $1, $2;", "fma", "f16", "rn", [a[keep], b[keep], c[keep]])


@pytest.mark.parametrize("t", ["f32", "f64"])
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed(mode: str, t: str) -> None:
    pairs = columns_of(t, 2)
    for op in ("add", "sub", "mul", "div"):
        check(f"{op}.{mode}.{t} $d, $0, $1;", op, t, mode, pairs)
    check(f"fma.{mode}.{t} $d, $0, $1, $2;", "fma", t, mode, columns_of(t, 3))


@pytest.mark.parametrize("t", ["f32", "f64"])
def test_division_and_roots(t: str) -> None:
    check(f"div.rn.{t} $d, $0, $1;", "div", t, "rn", columns_of(t, 2))
    a = columns_of(t, 1, 200)[0]
    with np.errstate(all="ignore"):
        same_floats(lanewise(f"sqrt.rn.{t} $d, $0;", [a], DTYPES[t]), np.sqrt(a))
        same_floats(lanewise(f"rcp.rn.{t} $d, $0;", [a], DTYPES[t]), (np.ones_like(a) / a).astype(DTYPES[t]))


def flush(a: np.ndarray) -> np.ndarray:
    return np.where(np.abs(a) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), a), a).astype(np.float32)


def test_flush_to_zero() -> None:
    a, b, c = floats(np.float32, 3)
    with np.errstate(all="ignore"):
        same_floats(lanewise("add.ftz.f32 $d, $0, $1;", [a, b], np.float32), flush(flush(a) + flush(b)))
        same_floats(lanewise("mul.ftz.f32 $d, $0, $1;", [a, b], np.float32), flush(flush(a) * flush(b)))
        want = [
            exact("fma", "f32", "rn", *(float(v) for v in row))
            for row in zip(flush(a), flush(b), flush(c), strict=True)
        ]
        same_floats(
            lanewise("fma.rn.ftz.f32 $d, $0, $1, $2;", [a, b, c], np.float32), flush(np.array(want).astype(np.float32))
        )
        same_floats(lanewise("abs.ftz.f32 $d, $0;", [a], np.float32), flush(np.abs(a)))


def test_saturate() -> None:
    a, b = floats(np.float32)
    with np.errstate(all="ignore"):
        want = np.clip(np.nan_to_num(a + b, nan=0.0, posinf=1.0, neginf=0.0), 0, 1).astype(np.float32)
    same_floats(lanewise("add.sat.f32 $d, $0, $1;", [a, b], np.float32), np.where(want == 0, np.float32(0), want))
    same_floats(
        lanewise("cvt.sat.f32.f32 $d, $0;", [a], np.float32),
        np.clip(np.nan_to_num(a, nan=0.0, posinf=1.0, neginf=0.0), 0, 1) + np.float32(0),
    )


@pytest.mark.parametrize("t", DTYPES)
def test_min_max(t: str) -> None:
    a, b = columns_of(t, 2)
    x, y = a.astype(np.float64), b.astype(np.float64)
    lower = np.where((x < y) | ((x == y) & np.signbit(x)), x, y)
    higher = np.where((x > y) | ((x == y) & ~np.signbit(x)), x, y)
    for name, both in (("min", lower), ("max", higher)):
        want = np.where(np.isnan(x), y, np.where(np.isnan(y), x, both))
        got = lanewise(f"{name}.{t} $d, $0, $1;", [a.view(BITS[t]), b.view(BITS[t])], BITS[t]).view(DTYPES[t])
        same_floats(got, want.astype(DTYPES[t]))
        if t != "f64":
            want = np.where(np.isnan(x) | np.isnan(y), np.nan, both)
            got = lanewise(f"{name}.NaN.{t} $d, $0, $1;", [a.view(BITS[t]), b.view(BITS[t])], BITS[t]).view(DTYPES[t])
            same_floats(got, want.astype(DTYPES[t]))


@pytest.mark.parametrize("t, half", [("f16x2", np.float16), ("bf16x2", ml_dtypes.bfloat16)])
def test_packed(t: str, half: type) -> None:
    name = t[:-2]
    columns = columns_of(name, 3, 20)
    columns = [c[: len(c) // 2 * 2] for c in columns]
    packed = [np.ascontiguousarray(c).view(np.uint32) for c in columns]
    for op, count in (("add", 2), ("sub", 2), ("mul", 2), ("fma.rn", 3)):
        operands = ", ".join(f"${i}" for i in range(count))
        got = lanewise(f"{op}.{t} $d, {operands};", packed[:count], np.uint32).view(half)
        want = [
            exact(op.split(".")[0], name, "rn", *(float(v) for v in row)) for row in zip(*columns[:count], strict=True)
        ]
        with np.errstate(all="ignore"):
            same_floats(got, np.array(want).astype(half))
    got = lanewise(f"fma.rn.relu.{t} $d, $0, $1, $2;", packed, np.uint32).view(half).astype(np.float64)
    assert not (got < 0).any()


def test_signs() -> None:
    a, b = floats(np.float32)
    same_floats(lanewise("neg.f32 $d, $0;", [a], np.float32), -a)
    same_floats(lanewise("abs.f32 $d, $0;", [a], np.float32), np.abs(a))
    same_floats(lanewise("copysign.f32 $d, $0, $1;", [a, b], np.float32), np.copysign(b, a))


def test_canonical_nan() -> None:
    nan = np.array([0x7FC00001, 0xFFC12345, 0x7F800001], np.uint32)
    assert (lanewise("add.f32 $d, $0, $0;", [nan], np.uint32) == 0x7FFFFFFF).all()
    assert (lanewise("mul.f16 $d, $0, $0;", [np.array([0x7E01], np.uint16)], np.uint16) == 0x7FFF).all()


@pytest.mark.parametrize("t", ["f32", "f64", "f16"])
def test_comparisons_with_nan(t: str) -> None:
    a, b = columns_of(t, 2, 6)
    unordered = np.isnan(a) | np.isnan(b)
    with np.errstate(all="ignore"):
        ordered = {"eq": a == b, "ne": (a < b) | (a > b), "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    for name, truth in ordered.items():
        for suffix, want in (("", truth & ~unordered), ("u", truth | unordered)):
            got = lanewise(
                f"setp.{name}{suffix}.{t} %p1, $0, $1; selp.u32 %r8, 1, 0, %p1; mov.b32 $d, %r8;", [a, b], np.uint32
            )
            assert np.array_equal(got.astype(bool), want), name + suffix
    got = lanewise(
        f"setp.num.{t} %p1, $0, $1; setp.nan.{t} %p2, $0, $1; selp.b32 %r7, 1, 0, %p1; selp.b32 $d, 2, %r7, %p2;",
        [a, b],
        np.uint32,
    )
    assert np.array_equal(got == 2, unordered)
    assert np.array_equal(got == 1, ~unordered)


def test_properties() -> None:
    a = floats(np.float32, 1)[0]
    tiny = np.finfo(np.float32).tiny
    subnormal = (a != 0) & (np.abs(a) < tiny)
    truths = {"finite": np.isfinite(a), "infinite": np.isinf(a), "number": ~np.isnan(a), "notanumber": np.isnan(a),
              "normal": np.isfinite(a) & ~subnormal & (a != 0), "subnormal": subnormal}  # fmt: skip
    for name, want in truths.items():
        got = lanewise(f"testp.{name}.f32 %p1, $0; selp.b32 $d, 1, 0, %p1;", [a], np.uint32)
        assert np.array_equal(got.astype(bool), want), name


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("op", ["min", "max"])
@pytest.mark.parametrize("t", ["f16", "bf16", "f32"])
def test_xorsign_abs(t: str, op: str, nan: str) -> None:
    """The magnitude of min or max of magnitudes with the sign of the product (PTX ISA 9.7.3.12)."""
    a, b = columns_of(t, 2)
    got = lanewise(f"{op}{nan}.xorsign.abs.{t} $d, $0, $1;", [a, b], DTYPES[t])
    x, y = np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64))
    pick = {("min", ""): np.fmin, ("max", ""): np.fmax, ("min", ".NaN"): np.minimum, ("max", ".NaN"): np.maximum}
    magnitude = pick[op, nan](x, y)
    sign = np.signbit(a) != np.signbit(b)
    with np.errstate(all="ignore"):
        same_floats(got, np.where(np.isnan(magnitude), np.nan, np.where(sign, -magnitude, magnitude)).astype(DTYPES[t]))


@pytest.mark.parametrize("t", ["f16", "bf16"])
def test_fma_oob_ignores_what_lies_outside_a_tensor(t: str) -> None:
    """An operand that is the NaN of a tensor map's fill makes the result 0; other NaNs go on."""
    a, b, c = columns_of(t, 3)
    plain = lanewise(f"fma.rn.{t} $d, $0, $1, $2;", [a, b, c], DTYPES[t])
    for column in (a, b):
        column[::5] = np.array(0x7FFF, np.uint16).view(DTYPES[t])
    got = lanewise(f"fma.rn.oob.{t} $d, $0, $1, $2;", [a, b, c], DTYPES[t])
    filled = (a.view(np.uint16) == 0x7FFF) | (b.view(np.uint16) == 0x7FFF)
    assert filled.sum() > 100
    assert not got[filled].view(np.uint16).any()
    same_floats(got[~filled], plain[~filled])


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_mma_f64_rounds_every_step_by_its_mode(mode: str) -> None:
    """m8n8k4: element (g, 2t) of D by lane 4g + t is a chain of four fused multiply-adds, k ascending."""
    rng = np.random.default_rng(5)
    a, b, c = rng.standard_normal((8, 4)), rng.standard_normal((4, 8)), rng.standard_normal((8, 8))
    lane = np.arange(32)
    g, k = lane // 4, lane % 4
    columns = [a[g, k].copy(), b[k, g].copy(), c[g, 2 * k].copy(), c[g, 2 * k + 1].copy()]
    text = f"mma.sync.aligned.m8n8k4.row.col.{mode}.f64.f64.f64.f64 {{$d, %d10}}, {{$0}}, {{$1}}, {{$2, $3}};"
    # Four threads a warp would be idle in a grid of 128: pad to whole warps.
    got = lanewise(text, [np.tile(column, 4) for column in columns], np.float64)[:32]
    for i in range(32):
        total = float(c[g[i], 2 * k[i]])
        for step in range(4):
            total = exact("fma", "f64", mode, a[g[i], step], b[step, 2 * k[i]], total)
        assert got[i] == total
