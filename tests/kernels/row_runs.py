"""Calls of rotary and other ops on rows for the tests of their kernels, against the ops' float64 references."""

from __future__ import annotations

import torch
from attention_runs import wide

import tkpy
from tkpy import machine, numerics, registry
from tkpy.ops import rows

#: Each op, and the modules of csrc/kernels/rows that it launches.
MODULES = {
    "rotary": ("rotary",),
    "group_norm": ("head_norm_forward", "head_norm_backward", "norm_backward"),
    "merge_state": ("merge_forward", "merge_backward"),
    "token_shift": ("shift_forward", "shift_backward", "norm_backward"),  # the last one has rows_norm_sum
}
OPS = {name: registry.get(name) for name in MODULES}


def outputs_of(result) -> list[torch.Tensor]:
    return [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]


def run(name, kwargs, backend, grad) -> dict[str, torch.Tensor]:
    """Outputs, and gradients of every floating input."""
    leaves = {n: t.detach() for n, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    if grad:
        leaves = {n: t.requires_grad_(True) for n, t in leaves.items()}
    outputs = outputs_of(registry.get(name).public(**{**kwargs, **leaves}, backend=backend))
    found = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    if grad:
        make = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(t.shape, generator=make).bfloat16().to(t) for t in outputs]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
        found |= {f"d{n}": t for n, t in zip(leaves, gradients, strict=True)}
    return found


def disagreement(name, kwargs, backend="emulator", grad=True) -> str:
    """Empty if outputs and gradients agree with float64; the tolerance is the dtype's own."""
    got = run(name, kwargs, backend, grad)
    want = run(name, {key: wide(value) for key, value in kwargs.items()}, "reference", grad)
    dtype = next(iter(kwargs.values())).dtype
    for key, tensor in got.items():
        comparison = numerics.compare(tensor, want[key].to(tensor.device), numerics.TOLERANCE[dtype])
        if not comparison:
            return f"{key}: {comparison}"
    return ""


def few_ctas(monkeypatch, folder, count=1, seed=0, counters=False):
    """An emulated GPU of so many multiprocessors: threads have several units of work."""
    made = machine.compiled().Machine.emulator(
        str(folder), seed=seed, multiprocessors=count, threads=2, counters=counters
    )
    monkeypatch.setattr(tkpy.build_info, "KERNELS", folder)
    monkeypatch.setattr(machine, "_machine", lambda kind, folder: made)
    monkeypatch.setattr(rows, "multiprocessors", lambda x: count)
    return made
