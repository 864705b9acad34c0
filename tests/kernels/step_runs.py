"""Calls of wkv5_step and hyena_step for the tests of their kernels, against the ops' float64 references."""

from __future__ import annotations

import torch

from tkpy import conformance, numerics, registry
from tkpy.bench.op_rows import by_op

NAMES = ("wkv5_step", "hyena_step")
OPS = {name: registry.get(name) for name in NAMES}
EXACT = 1e-5  # of what comes in float32 whatever the samples are: states


def inputs(name: str, *sizes: int, dtype=torch.bfloat16, seed=0, without=(), **more) -> dict:
    """Every option, by the sizes of the op's rows, but those in `without`."""
    spec = by_op()[name]
    kwargs = spec.make(registry.Maker(dtype, seed=seed), **dict(zip(spec.sizes, sizes, strict=True)))
    return {key: value for key, value in (kwargs | more).items() if key not in without}


def disagreement(name: str, kwargs: dict, backend: str = "emulator") -> str:
    """Empty if all outputs agree with float64: states to 1e-5, the rest to the tolerance of its dtype."""
    with torch.no_grad():
        got = OPS[name].public(**kwargs, backend=backend)
        want = OPS[name].public(**conformance.widen(kwargs), backend="reference")
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        wide = a.dtype in (torch.float32, torch.complex64)
        if not (comparison := numerics.compare(a, b, EXACT if wide else numerics.TOLERANCE[a.dtype])):
            return f"output {i}: {comparison}"
    return ""


def at_odd_addresses(kwargs: dict) -> dict:
    """Every tensor one element into memory that is otherwise NaN, and as contiguous as it was."""

    def moved(t: torch.Tensor) -> torch.Tensor:
        whole = torch.full((t.numel() + 2,), float("nan"), dtype=t.dtype)
        whole[1:-1] = t.flatten()
        return whole[1:-1].view(t.shape)

    return conformance.map_tensors(kwargs, moved)
