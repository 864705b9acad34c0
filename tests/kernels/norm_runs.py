"""Calls of rms_norm and layer_norm for the tests of their kernels, against the ops' float64 references."""

from __future__ import annotations

import torch
from attention_runs import wide

import tkpy
from tkpy import numerics, registry

OPS = {"rms": registry.get("rms_norm"), "layer": registry.get("layer_norm")}
MODULES = ("norm_forward", "norm_backward")


def inputs(kind, rows, width, *, dtype=torch.bfloat16, residual=None, dropout=0.0, pitch=None, seed=0, **options):
    """`residual`: its dtype; `pitch`: that of x."""
    make = registry.Maker(dtype, seed=seed)
    kwargs = {"x": make.randn(rows, pitch or width)[:, :width], "weight": make.randn(width)}
    if kind == "layer":
        kwargs |= {"bias": make.randn(width), "x": kwargs["x"] + 1.5}
    if residual is not None:
        kwargs["residual"] = make.randn(rows, width, dtype=residual)
    if dropout:
        kwargs |= {"dropout": dropout, "dropout_seed": make.randint(0, 2**62, 1)}
    return {**kwargs, "return_residual": True, **options}


def _run(kind, kwargs, backend, grad):
    leaves = {n: t.detach() for n, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    if grad:
        leaves = {name: t.requires_grad_(True) for name, t in leaves.items()}
    y, z = OPS[kind].public(**{**kwargs, **leaves}, backend=backend)
    found = {"y": y.detach(), "z": z.detach()}
    if grad:
        make = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(t.shape, generator=make).bfloat16().to(t.dtype) for t in (y, z)]
        gradients = torch.autograd.grad((y, z), list(leaves.values()), cotangents)
        found |= {f"d{name}": t for name, t in zip(leaves, gradients, strict=True)}
    return found


def disagreement(kind, kwargs, backend="emulator", grad=True) -> str:
    """Empty if outputs and gradients agree with float64; the tolerance is the dtype's own."""
    got = _run(kind, kwargs, backend, grad)
    want = _run(kind, {name: wide(value) for name, value in kwargs.items()}, "reference", grad)
    for name, tensor in got.items():
        comparison = numerics.compare(tensor, want[name], numerics.TOLERANCE[kwargs["x"].dtype])
        if not comparison:
            return f"{name}: {comparison}"
    return ""


def caught(kind, kwargs, grad=True) -> str:
    """What a finding or a wrong result says."""
    try:
        return disagreement(kind, kwargs, grad=grad)
    except tkpy.InternalError as error:
        return str(error)
