"""Calls of attention_fp8 for the tests of its kernel, against the op's float64 reference of the quantised inputs."""

from __future__ import annotations

import torch

import tkpy
from tkpy import numerics, registry
from tkpy.conformance import widen

OP = registry.get("attention_fp8")


def inputs(b, sq, sk, h, hkv, d, dv=None, *, seed=0, **options):
    """Quantised in blocks whose rows grow, so that scales differ."""
    make = registry.Maker(torch.float32, seed=seed)
    found = {}
    for name, rows, heads, width in (("q", sq, h, d), ("k", sk, hkv, d), ("v", sk, hkv, dv or d)):
        growth = torch.exp2(torch.arange(rows) // 128 % 4).view(1, rows, 1, 1)
        x = make.randn(b, rows, heads, width) * (growth if name == "v" else growth.rsqrt())
        found[name], found[f"descale_{name}"] = tkpy.quantize_blocks(x)
    return {**found, **options}


def disagreement(kwargs) -> str:
    """Empty if out and lse agree with float64."""
    with torch.no_grad():
        got = tkpy.attention_fp8(**kwargs, return_lse=True, backend="emulator")
        want = tkpy.attention_fp8(**widen(kwargs), return_lse=True, backend="reference")
    tolerances = (numerics.TOLERANCE[torch.float8_e4m3fn], 1e-5)
    for name, a, b, tolerance in zip(("out", "lse"), got, want, tolerances, strict=True):
        comparison = numerics.compare(a, b, tolerance)
        if not comparison:
            return f"{name}: {comparison}"
    return ""
