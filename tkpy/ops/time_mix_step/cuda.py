"""time_mix_step by the compiled kernels of csrc/kernels/time_mix_step: on an sm_90 GPU, or in the emulator.

The projections' weights go in as they are where their rows have no gaps within; other tensors that are not contiguous
are copied first. w, u and the state go in as float32, mix, weight and bias as x's dtype or float32. Gradients, which
decoding does not ask for, are eager.py's.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.rows import parameter
from tkpy.ops.time_mix_step.eager import backward as backward


def _rows(weight: torch.Tensor | None) -> torch.Tensor | None:
    if weight is None or (weight.stride(1) == 1 and weight.stride(0) >= weight.shape[1]):
        return weight
    return weight.contiguous()


def forward(x, last, mix, receptance, key, value, gate, w, u, weight, bias, initial_state, eps):
    shape = (x.shape[0], *w.shape)
    z = torch.empty(shape, dtype=x.dtype, device=x.device)
    state = torch.empty(*shape, w.shape[1], dtype=torch.float32, device=x.device)
    if z.numel():
        x, last = (None if t is None else t.contiguous() for t in (x, last))
        w, u, initial_state = (None if t is None else t.float().contiguous() for t in (w, u, initial_state))
        receptance, key, value, gate = (_rows(t) for t in (receptance, key, value, gate))
        launch(
            "time_mix_step", x, last, parameter(mix, x), receptance, key, value, gate, w, u, parameter(weight, x),
            parameter(bias, x), initial_state, z, state, eps, op="time_mix_step",
        )  # fmt: skip
    return z, state
