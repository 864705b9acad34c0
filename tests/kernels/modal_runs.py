"""Calls of modal_conv for the tests of its kernels, against the op's float64 reference."""

from __future__ import annotations

import math

import torch

from tkpy import conformance, registry
from tkpy.cases import Case

OP = registry.get("modal_conv")
MODULES = ("kernel", "f32", "backward", "steps")
NAMES = ("modal_conv", "modal_conv_f32", "modal_conv_backward", "modal_conv_steps")
ALL = frozenset({"skip", "pre_gate", "post_gate", "initial_state", "output_final_state"})


def inputs(batch, channels, modes, length, dtype=torch.bfloat16, seed=0, options=ALL, radius=(0.8, 0.9999)) -> dict:
    make = registry.Maker(dtype, seed=seed)

    def complex_of(*shape, scale=1.0):
        return torch.complex(*(make.randn(*shape, scale=scale, dtype=torch.float32) for _ in "ri"))

    size = make.uniform(*radius, channels, modes, dtype=torch.float32)
    tensors = {
        "u": make.randn(batch, channels, length),
        "poles": torch.polar(size, make.uniform(0, 2 * math.pi, channels, modes, dtype=torch.float32)),
        "residues": complex_of(channels, modes, scale=0.5),
        "skip": make.randn(channels, dtype=torch.float32),
        "pre_gate": make.randn(batch, channels, length),
        "post_gate": make.randn(batch, channels, length),
        "initial_state": complex_of(batch, channels, modes),
        "output_final_state": True,
    }
    return {k: v for k, v in tensors.items() if k in {"u", "poles", "residues"} | options}


def disagreement(kwargs: dict, backend: str = "emulator", grad: bool = True) -> str:
    """Empty if outputs and gradients agree with float64; the tolerance is the dtype's own."""
    case = Case("call", lambda m: kwargs, "of a test")
    device = kwargs["u"].device
    for result in conformance.check_case(OP, case, backend=backend, dtype=kwargs["u"].dtype, device=device, grad=grad):
        if not result.comparison:
            return str(result)
    return ""
