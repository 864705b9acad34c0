"""Calls of time_mix_step's Triton kernels, against the op's float64 reference."""

from __future__ import annotations

import torch

import tkpy
from tkpy.conformance import widen
from tkpy.numerics import TOLERANCE, compare
from tkpy.registry import Maker

OPTIONS = ("last", "gate", "weight", "bias", "initial_state")


def sized(batch: int, channels: int, heads: int, size: int, dtype: torch.dtype = torch.float32, *options: str) -> dict:
    """With these options; without any, all of them."""
    m, width, given = Maker(dtype), heads * size, options or OPTIONS
    names = ("receptance", "key", "value", "gate") if "gate" in given else ("receptance", "key", "value")
    kwargs = {"x": m.randn(batch, channels), "mix": m.uniform(-0.1, 1.1, len(names), channels), "last": None}
    kwargs |= {"gate": None} | {name: m.randn(width, channels, scale=channels**-0.5) for name in names}
    kwargs |= {"w": m.uniform(-6.0, 1.0, heads, size, dtype=m.wide), "u": m.randn(heads, size, dtype=m.wide)}
    kwargs |= {"last": m.randn(batch, channels)} if "last" in given else {}
    kwargs |= {name: m.randn(heads, size) for name in ("weight", "bias") if name in given}
    if "initial_state" in given:
        kwargs["initial_state"] = m.randn(batch, heads, size, size, dtype=m.wide)
    return kwargs


def disagreement(kwargs: dict) -> str:
    """Empty if z and the state agree with float64, and have their types."""
    dtype = kwargs["x"].dtype
    found = tkpy.time_mix_step(**kwargs, backend="triton")
    expected = tkpy.time_mix_step(**widen(kwargs), backend="reference")
    if (found[0].dtype, found[1].dtype) != (dtype, torch.float32):
        return f"z is {found[0].dtype}, the state {found[1].dtype}"
    for name, a, b in zip(("z", "state"), found, expected, strict=True):
        comparison = compare(a, b, TOLERANCE[dtype])
        if not comparison:
            return f"{name} of {tuple(kwargs['x'].shape)}: {comparison}"
    return ""


def strided(dtype: torch.dtype = torch.float32) -> dict:
    """Tokens, mixes and weights that lie otherwise than a kernel reads them."""
    kwargs = sized(3, 70, 5, 7, dtype)
    for name in ("x", "last", "mix", "receptance", "gate"):
        kwargs[name] = kwargs[name].T.contiguous().T
    return kwargs


def large() -> dict:
    """Keys that 16 bits do not hold, of weights that they do."""
    kwargs = sized(3, 150, 5, 7, torch.float16)
    return kwargs | {"key": 1e5 * kwargs["key"]}


def everything() -> str:
    """Small calls that together reach every line of the kernels; the first disagreement. All memory begins as NaN."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    return (
        disagreement(sized(1, 300, 3, 7))
        or disagreement(sized(3, 150, 5, 7, torch.float32, "weight", "bias"))
        or disagreement(large())
        or disagreement(strided())
    )
