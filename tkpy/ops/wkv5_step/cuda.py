"""wkv5_step by the compiled kernels of csrc/kernels/wkv5_step: on an sm_90 GPU, or in the emulator.

Tensors that are not contiguous are copied first; w, u and the state go in as float32, weight and bias as r's dtype or
float32. The gradients, which decoding does not ask for, are eager.py's.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.rows import parameter
from tkpy.ops.wkv5_step.eager import backward as backward


def forward(r, k, v, w, u, weight, bias, gate, initial_state, eps):
    z = torch.empty(r.shape, dtype=r.dtype, device=r.device)
    state = torch.empty(*r.shape, r.shape[2], dtype=torch.float32, device=r.device)
    if r.numel():
        r, k, v, gate = (None if x is None else x.contiguous() for x in (r, k, v, gate))
        wide = (None if x is None else x.float().contiguous() for x in (w, u, initial_state))
        w, u, initial_state = wide
        launch(
            "wkv5_step", r, k, v, w, u, parameter(weight, r), parameter(bias, r), gate, initial_state, z, state, eps,
            op="wkv5_step",
        )  # fmt: skip
    return z, state
