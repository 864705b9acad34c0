"""Calls of the gated MLPs' Triton kernels, and what each should return: the ops' float64 references."""

from __future__ import annotations

import functools

import torch
import triton_runs

from tkpy import registry
from tkpy.ops.gated_mlp.op import ACTIVATIONS
from tkpy.registry import Maker


def dense(rows: int, c: int, i: int, o: int, dtype: torch.dtype = torch.float32, **more) -> dict:
    m = Maker(dtype)
    w1, w2 = (m.randn(i, c, scale=c**-0.5) for _ in range(2))
    return {"x": m.randn(rows, c), "w1": w1, "w2": w2, "w3": m.randn(o, i, scale=i**-0.5), **more}


def blocks(rows: int, nblocks: int, c: int, i: int, o: int, dtype: torch.dtype = torch.float32, **more) -> dict:
    """C, I and O of all blocks together, padded where nblocks does not divide them."""
    m, (wide, mid, out) = Maker(dtype), (-(-n // nblocks) for n in (c, i, o))
    gated = m.randn(nblocks, -(-2 * i // nblocks), wide, scale=wide**-0.5)
    wo = m.randn(nblocks, out, mid, scale=mid**-0.5)
    return {"x": m.randn(rows, c), "gated": gated, "wo": wo, "bias": m.randn(o), "inner": i, **more}


def disagreement(kwargs: dict, *wanted: str) -> str:
    """Empty if y and the gradients, of those `wanted` or of all, agree with float64."""
    return triton_runs.disagreement("gated_mlp" if "w3" in kwargs else "blockdiag_mlp", kwargs, *wanted)


def overflowed() -> str:
    """A gate of -inf is shut: its slope is 0, not NaN; above, the slope is 1."""
    slopes = registry.get("gated_mlp").module("triton").slopes
    gate = torch.tensor([[-float("inf"), -65504.0, 0.0, 65504.0]], dtype=torch.float16)
    value, h = torch.full_like(gate, 2.0), torch.empty_like(gate)
    for activation in ACTIVATIONS:
        dz, one = torch.empty(2, 1, 4).half(), torch.ones(1, 1, 4).half()
        slopes(one[:, 0, :1], one, (gate, value), activation, dz=(dz[0], dz[1]), h=h)
        at_zero = 0.0 if activation == "relu" else 1.0
        found = (dz[0, 0].tolist(), dz[1, 0].tolist(), h[0].tolist())
        if found != ([0.0, 0.0, at_zero, 2.0], [0.0, 0.0, 0.0, 65504.0], [0.0, 0.0, 0.0, float("inf")]):
            return f"{activation} of {gate}: {found}"
    return ""


def everything() -> str:
    """Small calls that together reach every line of the kernels; the first disagreement."""
    calls = [functools.partial(disagreement, dense(19, 13, 21, 7, activation=a)) for a in ACTIVATIONS]
    calls += [
        functools.partial(disagreement, dense(19, 13, 70, 7, recompute=True)),
        functools.partial(disagreement, dense(19, 40, 21, 7), "w3"),
        functools.partial(disagreement, blocks(19, 3, 20, 24, 22)),  # padded inputs and outputs
        functools.partial(disagreement, blocks(19, 4, 26, 49, 30)),  # padded inner channels, two layers
        overflowed,
    ]
    return next((said for call in calls if (said := call())), "")
