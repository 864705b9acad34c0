"""hyena_step in plain PyTorch: the eager forms of short_conv and modal_conv on one sample, in float32 between them.

The backward is theirs too, in the other order; what lies between is computed again.
"""

from __future__ import annotations

import torch

from tkpy.ops.modal_conv import eager as modal
from tkpy.ops.short_conv import eager as short


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _parts(filtered: torch.Tensor, groups: int) -> list[torch.Tensor]:
    """(B, 3 W, 1) -> x2, x1, v, each (B, W, 1)."""
    split = filtered.unflatten(1, (groups, 3, filtered.shape[1] // (3 * groups)))
    return [part.flatten(1, 2) for part in split.unbind(2)]


def _short_args(z, weight, bias, fir_state):
    """Of short_conv's forward, wide."""
    return _wide(z)[..., None], weight, bias, None if fir_state is None else _wide(fir_state), None, "", True


def _modal_args(filtered, poles, residues, skip, state, groups):
    """Of modal_conv's forward."""
    x2, x1, v = _parts(filtered, groups)
    return v, poles, residues, skip, x1, x2, state, True


def forward(z, weight, bias, poles, residues, skip, fir_state, state, groups):
    filtered, inputs = short.forward(*_short_args(z, weight, bias, fir_state))
    y, state = modal.forward(*_modal_args(filtered, poles, residues, skip, state, groups))
    return y[..., 0].to(z.dtype), inputs.to(z.dtype), state


def backward(grads, outputs, z, weight, bias, poles, residues, skip, fir_state, state, groups, *, needs):
    dy, dinputs, dstate = grads
    short_args = _short_args(z, weight, bias, fir_state)
    filtered, _ = short.forward(*short_args)
    modal_args = _modal_args(filtered, poles, residues, skip, state, groups)
    dy = torch.zeros_like(filtered[:, : poles.shape[0]]) if dy is None else _wide(dy)[..., None]
    needed = [True, needs[3], needs[4], needs[5], True, True, needs[7]]
    found = modal.backward([dy, dstate], [], *modal_args, needs=needed)
    dv, dpoles, dresidues, dskip, dx1, dx2, dbefore = found
    if dv is None:
        dfiltered = None  # nothing flows back through a call without elements
    else:
        parts = [d.unflatten(1, (groups, d.shape[1] // groups)) for d in (dx2, dx1, dv)]
        dfiltered = torch.stack(parts, 2).flatten(1, 3)
    dinputs = None if dinputs is None else _wide(dinputs)
    needed = [True, needs[1], needs[2], needs[6], False]
    dz, dweight, dbias, dfir, _ = short.backward([dfiltered, dinputs], [], *short_args, needs=needed)
    return [dz[..., 0], dweight, dbias, dpoles, dresidues, dskip, dfir, dbefore]
