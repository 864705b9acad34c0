"""The comparison must fail when it should: zeros, NaN, a stale row, another case's output, one bad entry."""

from __future__ import annotations

import pytest
import torch

from tkpy.numerics import TOLERANCE, compare

pytestmark = pytest.mark.fast

NARROW = (torch.float16, torch.float8_e4m3fn)  # their range ends before 1e-30 and 1e12


@pytest.fixture
def expected():
    return torch.randn(32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "dtype, scale",
    [(d, s) for d in TOLERANCE for s in (1e-30, 1e-6, 1.0, 1e12) if d not in NARROW or s == 1.0],
    ids=str,
)
def test_rounding_agrees_at_any_scale(expected, dtype, scale):
    expected = expected * scale
    assert compare(expected.to(dtype), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12])
def test_controls_fail(expected, scale):
    expected = expected * scale
    previous = torch.randn(32, 48, dtype=torch.float64) * scale
    stale = expected.clone()
    stale[7] = previous[7]
    one = expected.clone()
    one[3, 4] += scale
    poisoned = expected.clone()
    poisoned[0, 0] = float("nan")
    infinite = expected.clone()
    infinite[0, 0] = float("inf")
    controls = {
        "zeros": torch.zeros_like(expected),
        "NaN": torch.full_like(expected, float("nan")),
        "one NaN": poisoned,
        "one inf": infinite,
        "stale row": stale,
        "previous case": previous,
        "negated": -expected,
        "one entry": one,
        "shape": expected[:-1],
    }
    for name, actual in controls.items():
        assert not compare(actual, expected, TOLERANCE[torch.bfloat16]), name


def test_a_single_bad_entry_cannot_hide_in_a_large_tensor():
    expected = torch.randn(1000, 1000, dtype=torch.float64)
    actual = expected.clone()
    actual[500, 500] += 1.0  # relative norm error 1e-3, below the bfloat16 tolerance
    result = compare(actual, expected, TOLERANCE[torch.bfloat16])
    assert result.relative < TOLERANCE[torch.bfloat16]
    assert not result
    assert result.reason == "single entries"


def test_infinities_must_stand_in_the_same_places():
    expected = torch.tensor([0.5, float("-inf"), 2.0])
    assert compare(expected.clone(), expected, 1e-6)
    assert not compare(torch.tensor([0.5, float("inf"), 2.0]), expected, 1e-6)
    assert not compare(torch.tensor([0.5, -1e30, 2.0]), expected, 1e-6)
    assert not compare(torch.tensor([float("-inf"), 0.5, 2.0]), expected, 1e-6)


def test_zero_references_and_empty_tensors():
    zeros = torch.zeros(4)
    assert compare(zeros, zeros, 1e-6)
    assert not compare(torch.tensor([0.0, 0.0, 1e-30, 0.0]), zeros, 1e-6)
    assert compare(torch.empty(0, 3), torch.empty(0, 3), 1e-6)
    assert not compare(torch.empty(0, 3), torch.empty(3, 0), 1e-6)


def test_a_reference_with_nan_is_never_agreed_with():
    bad = torch.tensor([1.0, float("nan")])
    assert not compare(bad, bad, 1e-2)


def test_complex_tensors_compare_both_parts():
    expected = torch.randn(64, dtype=torch.complex128)
    assert compare(expected.to(torch.complex64), expected, 1e-6)
    assert not compare(expected.conj(), expected, 1e-2)
