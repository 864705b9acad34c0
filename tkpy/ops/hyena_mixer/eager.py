"""hyena_mixer in plain PyTorch: the eager forms of short_conv and modal_conv with the split between them.

What lies between is rounded to z's dtype. The backward is theirs too, in the other order; the short filters are applied
again, the long ones are not. `forward_by` and `backward_by` do the same with other forms of the two, for triton.py and
cuda.py.
"""

from __future__ import annotations

from types import ModuleType

import torch

from tkpy.ops.modal_conv import eager as modal_eager
from tkpy.ops.short_conv import eager as short_eager


def _parts(filtered: torch.Tensor, groups: int) -> list[torch.Tensor]:
    """(B, 3 W, L) of any strides -> x2, x1, v, each (B, W, L) with samples side by side."""
    split = filtered.unflatten(1, (groups, 3, filtered.shape[1] // (3 * groups)))
    parts = [part.flatten(1, 2) for part in split.unbind(2)]
    return [part if part.stride(-1) == 1 else part.contiguous() for part in parts]


def forward_by(
    short: ModuleType, modal: ModuleType,
    z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state,
):  # fmt: skip
    filtered, inputs = short.forward(z.mT, weight, bias, fir_state, None, "", output_final_state)
    x2, x1, v = _parts(filtered, groups)
    y, state = modal.forward(v, poles, residues, skip, x1, x2, initial_state, output_final_state)
    return y.mT, inputs, state


def backward_by(
    short: ModuleType, modal: ModuleType, grads,
    z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state, *, needs,
):  # fmt: skip
    dy, dinputs, dstate = grads
    short_args = (z.mT, weight, bias, fir_state, None, "")
    filtered, _ = short.forward(*short_args, False)
    x2, x1, v = _parts(filtered, groups)
    inner = needs[0] or needs[1] or needs[2] or needs[6]
    needed = [inner, needs[3], needs[4], needs[5], inner, inner, needs[7]]
    dv, dpoles, dresidues, dskip, dx1, dx2, dbefore = modal.backward(
        [None if dy is None else dy.mT.contiguous(), dstate], [], v, poles, residues, skip, x1, x2, initial_state,
        output_final_state, needs=needed,
    )  # fmt: skip
    found = [None, None, None, None]
    if inner:
        dfiltered = None  # nothing flows back through a call without elements
        if dv is not None:
            parts = [d.unflatten(1, (groups, d.shape[1] // groups)) for d in (dx2, dx1, dv)]
            dfiltered = torch.stack(parts, 2).flatten(1, 3)
        needed = [needs[0], needs[1], needs[2], needs[6], False]
        *found, _ = short.backward([dfiltered, dinputs], [], *short_args, output_final_state, needs=needed)
    dz, dweight, dbias, dfir = found
    return [None if dz is None else dz.mT, dweight, dbias, dpoles, dresidues, dskip, dfir, dbefore]


def forward(*args):
    return forward_by(short_eager, modal_eager, *args)


def backward(grads, outputs, z, *args, needs):
    z = z.mT.contiguous().mT  # what it meets in the backward lies so
    return backward_by(short_eager, modal_eager, grads, z, *args, needs=needs)
