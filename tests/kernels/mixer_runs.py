"""Calls of hyena_mixer for the tests of its kernels, against the op's float64 reference."""

from __future__ import annotations

import math

import torch

from tkpy import conformance, registry
from tkpy.cases import Case

OP = registry.get("hyena_mixer")
PARTS = (
    *(f"hyena_mixer/{n}" for n in ("kernel", "f32", "backward", "backward_f32")),
    *(f"modal_conv/{n}" for n in ("kernel", "f32", "backward", "steps")),
    "rows/norm_backward",
)
ALL = frozenset({"bias", "skip", "fir_state", "initial_state", "output_final_state"})


def inputs(
    batch, length, width, modes, taps=3, groups=1, dtype=torch.bfloat16, seed=0, options=ALL, radius=(0.8, 0.9999)
) -> dict:
    make = registry.Maker(dtype, seed=seed)

    def complex_of(*shape, scale=1.0):
        return torch.complex(*(make.randn(*shape, scale=scale, dtype=torch.float32) for _ in "ri"))

    size = make.uniform(*radius, width, modes, dtype=torch.float32)
    tensors = {
        "z": make.randn(batch, length, 3 * width),
        "weight": make.randn(3 * width, taps, scale=taps**-0.5),
        "poles": torch.polar(size, make.uniform(0, 2 * math.pi, width, modes, dtype=torch.float32)),
        "residues": complex_of(width, modes, scale=0.5),
        "groups": groups,
        "bias": make.randn(3 * width),
        "skip": make.randn(width, dtype=torch.float32),
        "fir_state": make.randn(batch, 3 * width, taps - 1),
        "initial_state": complex_of(batch, width, modes),
        "output_final_state": True,
    }
    return {k: v for k, v in tensors.items() if k in {"z", "weight", "poles", "residues", "groups"} | options}


def disagreement(kwargs: dict, backend: str = "emulator", grad: bool = False) -> str:
    """Empty if outputs (and gradients) agree with float64; the tolerance is the dtype's own."""
    case = Case("call", lambda m: kwargs, "of a test")
    z = kwargs["z"]
    for result in conformance.check_case(OP, case, backend=backend, dtype=z.dtype, device=z.device, grad=grad):
        if not result.comparison:
            return str(result)
    return ""


def in_nan(x: torch.Tensor, offset: int, pitch: int) -> torch.Tensor:
    """The same rows inside a buffer that is otherwise NaN."""
    *outer, columns = x.shape
    buffer = torch.full((*outer[:-1], outer[-1] + 2, columns + offset + pitch), float("nan"), dtype=x.dtype)
    view = buffer[..., 1:-1, offset : offset + columns]
    view.copy_(x)
    return view
