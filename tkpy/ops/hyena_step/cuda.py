"""hyena_step by the compiled kernels of csrc/kernels/hyena_step: on an sm_90 GPU, or in the emulator.

Tensors that are not contiguous are copied first; weight, bias and skip go in as z's dtype or float32. The gradients,
which decoding does not ask for, are eager.py's.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.hyena_step.eager import backward as backward
from tkpy.ops.rows import parameter


def _pairs(x: torch.Tensor | None) -> torch.Tensor | None:
    """Complex numbers as contiguous pairs."""
    return None if x is None else torch.view_as_real(x.resolve_conj().contiguous())


def forward(z, weight, bias, poles, residues, skip, fir_state, state, groups):
    batch, (width, modes) = z.shape[0], poles.shape
    y = torch.empty(batch, width, dtype=z.dtype, device=z.device)
    inputs = torch.empty(batch, 3 * width, weight.shape[1] - 1, dtype=z.dtype, device=z.device)
    end = torch.empty(batch, width, modes, dtype=torch.complex64, device=z.device)
    if z.numel():
        launch(
            "hyena_step", z.contiguous(), parameter(weight, z), parameter(bias, z), _pairs(poles), _pairs(residues),
            parameter(skip, z), None if fir_state is None else fir_state.contiguous(), _pairs(state), y, inputs,
            _pairs(end), groups, op="hyena_step",
        )  # fmt: skip
    return y, inputs, end
