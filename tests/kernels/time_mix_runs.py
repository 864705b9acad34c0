"""Calls of time_mix_step for the tests of its kernels, against the op's float64 reference."""

from __future__ import annotations

import torch

from tkpy import conformance, numerics, registry
from tkpy.bench.op_rows import by_op

OP = registry.get("time_mix_step")


def inputs(b, c, h, n, dtype=torch.bfloat16, seed=0, without=(), **more) -> dict:
    """Every option but those in `without`; three mixes where the gate is among them."""
    kwargs = by_op()["time_mix_step"].make(registry.Maker(dtype, seed=seed), b, c, h, n)
    kwargs = {key: value for key, value in (kwargs | more).items() if key not in without}
    absent = {name: None for name in ("last", "gate") if name in without}
    return kwargs | absent | {"mix": kwargs["mix"][: 3 if "gate" in without else 4].contiguous()}


def disagreement(kwargs: dict, backend: str = "emulator") -> str:
    """Empty if z and the state agree with float64 to the tolerance of x's dtype, in which what is projected lies."""
    with torch.no_grad():
        got = OP.public(**kwargs, backend=backend)
        want = OP.public(**conformance.widen(kwargs), backend="reference")
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if not (comparison := numerics.compare(a, b, numerics.TOLERANCE[kwargs["x"].dtype])):
            return f"output {i}: {comparison}"
    return ""


def among_nan(kwargs: dict, shift: int = 0) -> dict:
    """Every tensor in memory that is otherwise NaN, `shift` elements beyond a multiple of 64; weights have NaN between
    their rows too."""

    def moved(t: torch.Tensor, gap: int) -> torch.Tensor:
        shape = torch.Size([*t.shape[:-1], t.shape[-1] + gap])
        whole = torch.full((shape.numel() + 128 + shift,), float("nan"), dtype=t.dtype)
        return whole[64 + shift :][: shape.numel()].view(shape)[..., : t.shape[-1]].copy_(t)

    weights = ("receptance", "key", "value", "gate")
    return {
        key: moved(t, 8 if key in weights else 0) if isinstance(t, torch.Tensor) else t for key, t in kwargs.items()
    }
