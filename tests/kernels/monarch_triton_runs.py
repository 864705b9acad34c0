"""Calls of monarch_multiply's Triton kernels, and what each should return: the op's float64 reference."""

from __future__ import annotations

import torch
from triton_runs import disagreement

from tkpy import registry
from tkpy.conformance import widen
from tkpy.numerics import TOLERANCE, compare
from tkpy.registry import Maker

OP = registry.get("monarch_multiply")


def sized(rows: int, k: int, q: int, p: int, l: int, s: int, dtype: torch.dtype = torch.float32) -> dict:
    """r follows from k q = l r."""
    m, r = Maker(dtype), k * q // l
    return {"x": m.randn(rows, k * p), "w1": m.randn(k, q, p, scale=p**-0.5), "w2": m.randn(l, s, r, scale=r**-0.5)}


def with_h(kwargs: dict, keep: bool, backend: str) -> list[torch.Tensor]:
    """The torch op itself, h and a gradient of it too where it is kept: outputs and gradients."""
    leaves = [t.detach().requires_grad_() for t in kwargs.values()]
    outputs = OP(*leaves, keep, backend=backend)[: 2 if keep else 1]
    m = Maker(torch.bfloat16, seed=5)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [m.randn(*y.shape).to(y) for y in outputs])]


def disagreement_with_h(kwargs: dict, keep: bool) -> str:
    found, expected = with_h(kwargs, keep, "triton"), with_h(widen(kwargs), keep, "reference")
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        comparison = compare(a, b, TOLERANCE[a.dtype])
        if not comparison:
            return f"keep={keep}, result {number}: {comparison}"
    return ""


def everything() -> str:
    """Small calls that together reach every line of the kernels; the first disagreement."""
    kwargs, wide = sized(18, 19, 21, 20, 21, 18), sized(5, 3, 8, 40, 4, 7)
    OP.module("triton").FEWEST_ROWS = 16  # of a share
    return (
        disagreement(OP.name, kwargs)
        or disagreement(OP.name, kwargs, "x")
        or disagreement_with_h(sized(40, 19, 16, 5, 16, 5), False)
        or disagreement_with_h(kwargs, True)
        or disagreement_with_h(wide, False)
        or disagreement_with_h(wide, True)
    )
