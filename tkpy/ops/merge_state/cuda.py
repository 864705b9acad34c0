"""merge_state by the compiled kernels rows_merge_*: on an sm_90 GPU, or in the emulator; one launch each way."""

from __future__ import annotations

import torch

from tkpy.machine import launch

OP = "merge_state"


def _rows(out: torch.Tensor | None) -> torch.Tensor | None:
    """(B, S, H, D) with contiguous channels; a packed one is one sequence."""
    if out is None:
        return None
    four = out if out.dim() == 4 else out[None]
    return four if four.stride(3) == 1 else four.contiguous()


def _numbers(lse: torch.Tensor | None) -> torch.Tensor | None:
    return lse if lse is None or lse.dim() == 3 else lse[None]


def forward(out1, lse1, out2, lse2):
    out, lse = out1.new_empty(out1.shape), lse1.new_empty(lse1.shape)
    if lse.numel():
        parts = _rows(out1), _numbers(lse1), _rows(out2), _numbers(lse2)
        launch("merge_forward", *parts, _rows(out), _numbers(lse), op=OP)
    return out, lse


def backward(grads, outputs, out1, lse1, out2, lse2, *, needs):
    dout, dlse = grads
    parts = [out1, lse1, out2, lse2]
    found = [t.new_empty(t.shape) if need else None for t, need in zip(parts, needs, strict=True)]
    if lse1.numel():
        given = [_rows(out1), _numbers(lse1), _rows(out2), _numbers(lse2), _rows(dout), _numbers(dlse)]
        wanted = [_rows(found[0]), _numbers(found[1]), _rows(found[2]), _numbers(found[3])]
        launch("merge_backward", *given, *wanted, op=OP)
    return found
