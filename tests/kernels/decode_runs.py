"""Calls of attention_decode for the tests of its kernels, against the op's float64 reference."""

from __future__ import annotations

import torch

import tkpy
from tkpy import numerics, registry

OP = registry.get("attention_decode")


def inputs(lengths, sq, h, hkv, d, dv=None, *, page=None, dtype=torch.bfloat16, seed=0, **options):
    """Caches in one piece, or in pages in no order, with room for the longest length."""
    make, b = registry.Maker(dtype, seed=seed), len(lengths)
    rows, size, table = b, max(lengths), None
    if page:
        n = -(-size // page)
        rows, size = 2 * b * n, page
        table = torch.randperm(rows, generator=make.generator)[: b * n].view(b, n).int()
    tensors = {
        "q": make.randn(b, sq, h, d),
        "k_cache": make.randn(rows, size, hkv, d),
        "v_cache": make.randn(rows, size, hkv, dv or d),
        "seqlens": torch.tensor(lengths, dtype=torch.int32),
    }
    return {**tensors, "block_table": table, **options}


def wide(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def disagreement(kwargs, backend: str = "emulator") -> str:
    """Empty if out and lse agree with float64; the tolerance is the dtype's own."""
    with torch.no_grad():
        got = tkpy.attention_decode(**kwargs, return_lse=True, backend=backend)
        want = tkpy.attention_decode(**{k: wide(v) for k, v in kwargs.items()}, return_lse=True, backend="reference")
    tolerances = (numerics.TOLERANCE[kwargs["q"].dtype], 1e-5)
    for name, a, b, tolerance in zip(("out", "lse"), got, want, tolerances, strict=True):
        comparison = numerics.compare(a, b, tolerance)
        if not comparison:
            return f"{name}: {comparison}"
    return ""
