"""Calls of wkv5 for the tests of its kernels, against the op's float64 reference."""

from __future__ import annotations

import torch
from attention_runs import wide

import tkpy
from tkpy import numerics, registry

OP = registry.get("wkv5")
WIDE = 1e-4  # of what comes in float32: the products' operands have 16 bits


def inputs(batch, length, heads, size, *, bounds=None, dtype=torch.bfloat16, seed=0, state=True, low=-6.0, high=1.0):
    make = registry.Maker(dtype, seed=seed)
    kwargs = {name: make.randn(batch, length, heads, size, scale=0.7) for name in "rkv"}
    kwargs["w"] = make.uniform(low, high, heads, size, dtype=torch.float32)
    kwargs["u"] = make.randn(heads, size, dtype=torch.float32)
    if bounds:
        kwargs["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    if state:
        count = len(bounds) - 1 if bounds else batch
        kwargs["initial_state"] = make.randn(count, heads, size, size, dtype=torch.float32)
        kwargs["output_final_state"] = True
    return kwargs


def tolerance(tensor: torch.Tensor) -> float:
    return WIDE if tensor.dtype == torch.float32 else numerics.TOLERANCE[tensor.dtype]


def disagreement(kwargs, backend: str = "emulator") -> str:
    """Empty if y and the final state agree with float64."""
    with torch.no_grad():
        got = tkpy.wkv5(**kwargs, backend=backend)
        want = tkpy.wkv5(**{name: wide(value) for name, value in kwargs.items()}, backend="reference")
    for name, a, b in zip(("y", "final_state"), got, want, strict=True):
        if a is not None and not (comparison := numerics.compare(a, b, tolerance(a))):
            return f"{name}: {comparison}"
    return ""


def gradients(kwargs, backend: str) -> dict[str, torch.Tensor]:
    """Of every floating input; the cotangents are values that every dtype holds."""
    floating = {name: t for name, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    leaves = {name: t.detach().clone().requires_grad_(True) for name, t in floating.items()}
    outputs = [t for t in tkpy.wkv5(**kwargs | leaves, backend=backend) if t is not None]
    make = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=make).bfloat16().to(t) for t in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    return dict(zip(leaves, found, strict=True))


def wrong_gradient(kwargs, backend: str = "emulator") -> str:
    """Empty if all gradients agree with float64: those in float32 to 1e-4."""
    got = gradients(kwargs, backend)
    want = gradients({name: wide(value) for name, value in kwargs.items()}, "reference")
    for name, gradient in got.items():
        if not (comparison := numerics.compare(gradient, want[name], tolerance(gradient))):
            return f"{name}: {comparison}"
    return ""


def in_segments(monkeypatch, tokens: int | None) -> None:
    """Cuts every sequence into segments of so many tokens; None: as the shapes say."""
    if tokens:
        monkeypatch.setattr(OP.module("cuda"), "segment_for", lambda *shapes: tokens)
