"""hyena_step in plain PyTorch: hyena_mixer on a sequence of one sample, in float32 between input and output."""

from __future__ import annotations

from typing import Any

import torch

from tkpy.ops.hyena_mixer.eager import backward_by, forward_by
from tkpy.ops.modal_conv import eager as modal
from tkpy.ops.short_conv import eager as short


def _wide(x: torch.Tensor | None) -> Any:
    return x if x is None or x.dtype == torch.float64 else x.float()


def _sequence(z, weight, bias, poles, residues, skip, fir_state, state, groups):
    """The arguments of hyena_mixer's forward, wide."""
    return _wide(z)[:, None], weight, bias, poles, residues, skip, _wide(fir_state), state, groups, True


def forward(z, *others):
    y, inputs, state = forward_by(short, modal, *_sequence(z, *others))
    return y[:, 0].to(z.dtype), inputs.to(z.dtype), state


def backward(grads, outputs, *args, needs):
    dy, dinputs, dstate = grads
    wide = [None if dy is None else _wide(dy)[:, None], _wide(dinputs), dstate]
    dz, *others = backward_by(short, modal, wide, *_sequence(*args), needs=needs)
    return [None if dz is None else dz[:, 0], *others]
