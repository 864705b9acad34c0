"""Bulk copies' rules and the element operations of bulk reductions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

BF16 = np.dtype(ml_dtypes.bfloat16)
TO_GLOBAL = {  # what ptxas 13.0 accepts for sm_90a
    "add": {"u32", "s32", "u64", "f16", "bf16", "f32", "f64"},
    **{key: {"u32", "s32", "u64", "s64", "f16", "bf16"} for key in ("min", "max")},
    **{key: {"u32"} for key in ("inc", "dec")},
    **{key: {"b32", "b64"} for key in ("and", "or", "xor")},
}
TO_SHARED = {
    "add": {"u32", "s32", "u64"},
    **{key: {"u32", "s32"} for key in ("min", "max")},
    **{key: {"u32"} for key in ("inc", "dec")},
    **{key: {"b32"} for key in ("and", "or", "xor")},
}
NUMPY = {
    "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64, "b32": np.uint32, "b64": np.uint64,
    "f16": np.float16, "bf16": BF16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip


def test_alignment(native):
    assert native.bulk_reason(4096, 1024, 64) == ""
    assert native.bulk_reason(4096, 1024, 0) == ""
    assert native.bulk_reason(4104, 1024, 64) == "the destination address must be a multiple of 16, got 4104 (8 over)"
    assert "source address" in native.bulk_reason(4096, 1028, 64)
    assert "size must be a multiple of 16, got 40" in native.bulk_reason(4096, 1024, 40)


@pytest.mark.parametrize("shared, table", [(False, TO_GLOBAL), (True, TO_SHARED)])
def test_which_reductions_exist(native, shared, table):
    for op, types in table.items():
        for kind in NUMPY:
            reason = native.reduce_reason(op, kind, shared)
            assert bool(reason) == (kind not in types), (op, kind)
            assert not reason or f".{op}.{kind}" in reason


def reduce(native, op: str, kind: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    got = native.reduce_elements(op, kind, new.view(np.uint8), old.view(np.uint8))
    return got.view(NUMPY[kind])


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_integers(native, kind):
    rng = np.random.default_rng(0)
    dtype = np.dtype(NUMPY[kind])
    old, new = (rng.integers(0, 256, 4096, dtype=np.uint8).view(dtype) for _ in range(2))
    old[:4], new[:4] = [0, 0, 5, 5], [0, 3, 5, 4]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(reduce(native, "add", kind, old, new), old + new)
        np.testing.assert_array_equal(reduce(native, "min", kind, old, new), np.minimum(old, new))
        np.testing.assert_array_equal(reduce(native, "max", kind, old, new), np.maximum(old, new))
        if kind == "u32":
            inc = np.where(old >= new, np.uint32(0), old + np.uint32(1))
            dec = np.where((old == 0) | (old > new), new, old - np.uint32(1))
            np.testing.assert_array_equal(reduce(native, "inc", kind, old, new), inc)
            np.testing.assert_array_equal(reduce(native, "dec", kind, old, new), dec)
    if dtype.kind == "u":
        for op, f in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
            np.testing.assert_array_equal(reduce(native, op, f"b{dtype.itemsize * 8}", old, new), f(old, new))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
def test_halves_round_once(native, kind):
    rng = np.random.default_rng(1)
    dtype = np.dtype(NUMPY[kind])
    old, new = (rng.integers(0, 1 << 16, 1 << 16, dtype=np.uint16).view(dtype) for _ in range(2))
    wide = old.astype(np.longdouble) + new.astype(np.longdouble)  # one rounding from the exact sum, or harmless two
    want = wide.astype(np.float64).astype(dtype)
    got = reduce(native, "add", kind, old, new)
    number = ~np.isnan(want.astype(np.float32))
    np.testing.assert_array_equal(got[number].view(np.uint16), want[number].view(np.uint16))
    assert (got[~number].view(np.uint16) == 0x7FFF).all()
    for op, pick in (("min", np.fmin), ("max", np.fmax)):
        got = reduce(native, op, kind, old, new).astype(np.float32)
        np.testing.assert_array_equal(got, pick(old.astype(np.float32), new.astype(np.float32)))
    zeros = np.array([0.0, -0.0] * 4).astype(dtype), np.array([-0.0, 0.0] * 4).astype(dtype)
    assert np.signbit(reduce(native, "min", kind, *zeros).astype(np.float32)).all()
    assert not np.signbit(reduce(native, "max", kind, *zeros).astype(np.float32)).any()


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_floats(native, kind):
    rng = np.random.default_rng(2)
    old, new = (rng.standard_normal(512).astype(NUMPY[kind]) for _ in range(2))
    np.testing.assert_array_equal(reduce(native, "add", kind, old, new), old + new)
