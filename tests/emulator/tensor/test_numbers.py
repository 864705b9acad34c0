"""Every narrow encoding widens as ml_dtypes says; narrowing agrees with ml_dtypes or with an exact search."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")  # NaN are among the values

NARROW = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "e4m3": 0x7F, "e5m2": 0x7F}


def codes(name: str) -> np.ndarray:
    bits = NARROW[name].itemsize * 8
    return np.arange(1 << bits, dtype=f"u{bits // 8}")


def bits_of(values: np.ndarray) -> np.ndarray:
    return values.view(f"u{values.dtype.itemsize}").astype(np.uint32)


def f32_sweep() -> np.ndarray:
    """All 2^16 upper halves of an f32 with the low halves around which roundings turn, and random ones."""
    rng = np.random.default_rng(0)
    low = np.concatenate([[0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001], rng.integers(0, 65536, 3)])
    high = np.arange(65536, dtype=np.uint32) << np.uint32(16)
    return (high[:, None] | low.astype(np.uint32)[None, :]).reshape(-1).view(np.float32)


@pytest.mark.parametrize("name", NARROW)
def test_widening_is_exact_for_every_encoding(native, name):
    every = codes(name)
    got = native.widen(name, every.view(np.uint8))
    want = every.view(NARROW[name]).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    finite = ~np.isnan(want)
    np.testing.assert_array_equal(got[finite].view(np.uint32), want[finite].view(np.uint32))


def test_widening_of_integers_and_tf32(native):
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(native.widen("s8", every), every.view(np.int8).astype(np.float32))
    np.testing.assert_array_equal(native.widen("u8", every), every.astype(np.float32))
    nibbles = np.stack([every & 15, every >> 4], 1).reshape(-1).astype(np.int32)
    np.testing.assert_array_equal(native.widen("u4", every), nibbles)
    np.testing.assert_array_equal(native.widen("s4", every), np.where(nibbles > 7, nibbles - 16, nibbles))
    raw = np.random.default_rng(1).integers(0, 2**32, 4096, dtype=np.uint32)
    np.testing.assert_array_equal(native.widen("tf32", raw.view(np.uint8)).view(np.uint32), raw & 0xFFFFE000)


@pytest.mark.parametrize("name", NARROW)
def test_round_to_nearest_agrees_with_ml_dtypes(native, name):
    values = f32_sweep()
    with np.errstate(all="ignore"):
        want = bits_of(values.astype(NARROW[name]))
    want[np.isnan(values)] = NAN[name]
    if name == "e4m3":  # overflow gives the NaN of its own sign here; ml_dtypes agrees except for infinities' sign
        want = np.where((want & 0x7F) == 0x7F, np.where(np.isnan(values), 0x7F, 0x7F | (np.signbit(values) << 7)), want)
    np.testing.assert_array_equal(native.narrow(name, values), want)


@pytest.mark.parametrize("name", NARROW)
def test_every_encoding_survives_a_round_trip(native, name):
    every = codes(name)
    wide = every.view(NARROW[name]).astype(np.float64)
    keep = ~np.isnan(wide)
    for mode in ("rn", "rna", "rz", "rm", "rp"):
        np.testing.assert_array_equal(native.narrow(name, wide[keep], mode), every[keep])


def directed(values: np.ndarray, dtype: np.dtype, mode: str) -> np.ndarray:
    """Encodings by exact search among all finite values, in float64: magnitudes below `largest` only."""
    grid_bits = np.arange(1 << (dtype.itemsize * 8 - 1), dtype=f"u{dtype.itemsize}")
    grid = grid_bits.view(dtype).astype(np.float64)
    grid = grid[np.isfinite(grid)]
    sign = np.signbit(values)
    magnitude = np.abs(values)
    below = np.searchsorted(grid, magnitude, side="right") - 1
    above = np.minimum(below + (grid[below] < magnitude), len(grid) - 1)
    if mode == "rz":
        chosen = below
    elif mode in ("rm", "rp"):
        chosen = np.where(sign == (mode == "rm"), above, below)
    else:
        up, down = grid[above] - magnitude, magnitude - grid[below]
        tie = (above & 1) == 0 if mode == "rn" else np.ones_like(sign)
        chosen = np.where((up < down) | ((up == down) & tie), above, below)
    return (chosen | sign.astype(np.int64) << (dtype.itemsize * 8 - 1)).astype(np.uint32)


@pytest.mark.parametrize("mode", ["rn", "rna", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", NARROW)
def test_every_rounding_mode_by_exact_search(native, name, mode):
    dtype = NARROW[name]
    every = codes(name).view(dtype).astype(np.float64)
    every = np.sort(every[np.isfinite(every)])
    middle = (every[1:] + every[:-1]) / 2  # exact in float64
    nudge = np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)  # below f32's resolution: sticky bits
    values = np.concatenate([every, middle, *nudge, [5e-324, -5e-324, 1e-300, -1e-300, 2.0**-150]])
    np.testing.assert_array_equal(native.narrow(name, values, mode), directed(values, dtype, mode))


@pytest.mark.parametrize("name", NARROW)
def test_overflow_satfinite_and_relu(native, name):
    largest = float(ml_dtypes.finfo(NARROW[name]).max)
    top = int(native.narrow(name, np.array([largest]))[0])
    sign = 1 << (NARROW[name].itemsize * 8 - 1)
    huge = np.array([np.inf, -np.inf, 2 * largest, -2 * largest])
    infinity = 0x7F if name == "e4m3" else top + 1
    both = [infinity, infinity | sign]
    np.testing.assert_array_equal(native.narrow(name, huge), both * 2)
    np.testing.assert_array_equal(native.narrow(name, huge, satfinite=True), [top, top | sign] * 2)
    np.testing.assert_array_equal(native.narrow(name, huge, "rz"), [*both, top, top | sign])
    np.testing.assert_array_equal(native.narrow(name, huge, "rm"), [*both, top, infinity | sign])
    np.testing.assert_array_equal(native.narrow(name, huge, "rp"), [*both, infinity, top | sign])
    odd = np.array([-1.0, -0.0, -np.inf, np.nan, -np.nan, 1.0])
    one = int(native.narrow(name, np.array([1.0]))[0])
    np.testing.assert_array_equal(native.narrow(name, odd, relu=True), [0, 0, 0, NAN[name], NAN[name], one])
    np.testing.assert_array_equal(native.narrow(name, odd, satfinite=True)[3:5], [NAN[name]] * 2)


def test_fast_paths_equal_the_general_one(native):
    values = f32_sweep()
    np.testing.assert_array_equal(native.f32_to_bf16(values), native.narrow("bf16", values))
    grid = codes("f16").view(np.float16).astype(np.float32)
    halves = np.concatenate([grid, grid * np.float32(1 + 2.0**-11), grid * np.float32(1.0005)])
    for sweep in (values, halves.astype(np.float32)):
        np.testing.assert_array_equal(native.f32_to_f16(sweep), native.narrow("f16", sweep))


def test_tf32_rounding(native):
    values = f32_sweep()
    finite = values[np.isfinite(values)]
    raw = finite.view(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(native.narrow("tf32", finite, "rz"), raw & 0xFFFFE000)
    away = (raw + 0x1000) & 0xFFFFE000
    np.testing.assert_array_equal(native.narrow("tf32", finite, "rna"), away)
    even = (raw + 0xFFF + (raw >> 13 & 1)) & 0xFFFFE000
    np.testing.assert_array_equal(native.narrow("tf32", finite, "rn"), even)
    np.testing.assert_array_equal(native.narrow("tf32", np.array([np.nan, -np.nan]), "rn"), [0x7FFFFFFF] * 2)


def test_a_wrong_tie_is_seen(native):
    """Sabotage: the exact search must tell ties-to-even from ties-away."""
    every = np.sort(codes("e4m3").view(NARROW["e4m3"]).astype(np.float64))
    every = every[np.isfinite(every)]
    middle = (every[1:] + every[:-1]) / 2
    assert (native.narrow("e4m3", middle, "rna") != directed(middle, NARROW["e4m3"], "rn")).any()
