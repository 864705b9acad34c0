"""cvt between every pair of number types, against numpy, ml_dtypes and exact rationals."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import floats, integers, lanewise, same_floats
from exact_rounding import round_fraction

INTS = {"s8": np.int8, "u8": np.uint8, "s16": np.int16, "u16": np.uint16, "s32": np.int32, "u32": np.uint32, "s64": np.int64, "u64": np.uint64}  # fmt: skip
FLOATS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(a: np.ndarray) -> np.ndarray:
    return a.view(BITS[a.dtype.itemsize])


def convert(name: str, a: np.ndarray, to: type) -> np.ndarray:
    size = np.dtype(to).itemsize
    if size == 1:
        return lanewise(f"cvt.{name} %h8, $0; cvt.u32.u16 $d, %h8;", [bits(a)], np.uint32).astype(np.uint8).view(to)
    return lanewise(f"cvt.{name} $d, $0;", [bits(a)], BITS[size]).view(to)


@pytest.mark.parametrize("source", INTS)
def test_between_integers(source: str) -> None:
    a = integers(INTS[source], 1)[0]
    for target, dtype in INTS.items():
        assert np.array_equal(convert(f"{target}.{source}", a, dtype), a.astype(dtype)), target
        info, given = np.iinfo(dtype), np.iinfo(INTS[source])
        if info.min <= given.min and given.max <= info.max:
            continue  # every value fits: there is no .sat
        want = np.array([min(max(int(v), info.min), info.max) for v in a], dtype)
        assert np.array_equal(convert(f"sat.{target}.{source}", a, dtype), want), target


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("target", ["f16", "f32", "f64"])
def test_integer_to_float(target: str, mode: str) -> None:
    for source, dtype in INTS.items():
        a = integers(dtype, 1)[0]
        want = np.array([round_fraction(Fraction(int(v)), target, mode) for v in a])
        with np.errstate(all="ignore"):
            same_floats(convert(f"{mode}.{target}.{source}", a, FLOATS[target]), want.astype(FLOATS[target]))


def to_integer(v: float, mode: str, target: str, source: str) -> int:
    info = np.iinfo(INTS[target])
    if math.isnan(v):
        wide = source == "f64" or info.bits == 64
        return (1 << (info.bits - 1)) - (1 << info.bits if wide and info.min < 0 else 0) if wide else 0
    if math.isinf(v):
        return info.max if v > 0 else info.min
    f = Fraction(v)
    r = {"rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil, "rni": round}[mode](f)
    return min(max(r, info.min), info.max)


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("source", FLOATS)
def test_float_to_integer(source: str, mode: str) -> None:
    base = floats(np.float32 if source == "bf16" else FLOATS[source], 1, 60)[0]
    rng = np.random.default_rng(4)
    with np.errstate(all="ignore"):
        a = np.concatenate(
            [base, (rng.standard_normal(100) * 2.0 ** rng.integers(0, 70, 100)).astype(base.dtype)]
        ).astype(FLOATS[source])
    for target in ("s16", "u16", "s32", "u32", "s64", "u64"):
        want = np.array([to_integer(float(v), mode, target, source) for v in a], dtype=object)
        got = convert(f"{mode}.{target}.{source}", a, INTS[target])
        bad = [
            (x, g, w)
            for x, g, w in zip(a, got, want, strict=True)
            if int(g) != w % (1 << np.iinfo(INTS[target]).bits) and int(g) != w
        ]
        assert not bad, (target, bad[:5])


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize(
    "source, target", [("f64", "f32"), ("f64", "f16"), ("f64", "bf16"), ("f32", "f16"), ("f32", "bf16")]
)
def test_narrowing(source: str, target: str, mode: str) -> None:
    a = floats(FLOATS[source], 1, 500)[0]
    rng = np.random.default_rng(5)
    with np.errstate(all="ignore"):
        a = np.concatenate([a, (rng.standard_normal(500) * 2.0 ** rng.integers(-30, 20, 500)).astype(a.dtype)])
        want = np.array(
            [
                float(v) if not math.isfinite(v) or v == 0 else round_fraction(Fraction(float(v)), target, mode)
                for v in a
            ]
        )
        same_floats(convert(f"{mode}.{target}.{source}", a, FLOATS[target]), want.astype(FLOATS[target]))


@pytest.mark.parametrize("source, target", [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("f32", "f64")])
def test_widening_is_exact(source: str, target: str) -> None:
    a = np.arange(65536, dtype=np.uint16).view(FLOATS[source]) if source != "f32" else floats(np.float32, 1, 400)[0]
    with np.errstate(all="ignore"):
        same_floats(convert(f"{target}.{source}", a, FLOATS[target]), a.astype(FLOATS[target]))


@pytest.mark.parametrize("t", ["f16", "f32", "f64"])
def test_round_to_integral(t: str) -> None:
    a = floats(FLOATS[t], 1, 200)[0]
    with np.errstate(all="ignore"):
        for mode, f in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
            same_floats(convert(f"{mode}.{t}.{t}", a, FLOATS[t]), f(a))


def test_packs_put_the_first_source_high() -> None:
    a, b = floats(np.float32)
    with np.errstate(all="ignore"):
        for name, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
            got = lanewise(f"cvt.rn.{name}x2.f32 $d, $0, $1;", [a, b], np.uint32).view(dtype).reshape(-1, 2)
            same_floats(np.ascontiguousarray(got[:, 1]), a.astype(dtype))
            same_floats(np.ascontiguousarray(got[:, 0]), b.astype(dtype))
            relu = lanewise(f"cvt.rn.relu.{name}x2.f32 $d, $0, $1;", [a, b], np.uint32).view(dtype).reshape(-1, 2)
            same_floats(np.ascontiguousarray(relu[:, 1]), np.where(a < 0, 0, np.abs(a)).astype(dtype))


@pytest.mark.parametrize("name, dtype", [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)])
def test_fp8(name: str, dtype: type) -> None:
    a, b = floats(np.float32, 2, 60)
    got = lanewise(f"cvt.rn.satfinite.{name}x2.f32 $d, $0, $1;", [a, b], np.uint16).view(np.uint8).reshape(-1, 2)
    top = float(ml_dtypes.finfo(dtype).max)
    with np.errstate(all="ignore"):
        want = np.clip(a, -top, top).astype(dtype)
    nan = np.isnan(a)
    assert np.array_equal(got[~nan, 1], want.view(np.uint8)[~nan])
    assert np.isnan(np.ascontiguousarray(got[nan, 1]).view(dtype).astype(np.float32)).all()
    every = np.arange(65536, dtype=np.uint16)
    wide = lanewise(f"cvt.rn.f16x2.{name}x2 $d, $0;", [every], np.uint32).view(np.float16)
    same_floats(wide, every.view(np.uint8).view(dtype).astype(np.float16))


def test_tf32() -> None:
    a = floats(np.float32, 1, 400)[0]
    for mode in ("rn", "rna"):
        want = np.array(
            [
                float(v) if not math.isfinite(v) or v == 0 else round_fraction(Fraction(float(v)), "tf32", mode)
                for v in a
            ]
        )
        with np.errstate(all="ignore"):
            same_floats(convert(f"{mode}.tf32.f32", a, np.float32), want.astype(np.float32))
