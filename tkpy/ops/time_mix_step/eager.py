"""time_mix_step in plain PyTorch: the eager forms of token_shift and wkv5_step around torch's GEMMs."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tkpy.ops.token_shift import eager as shift
from tkpy.ops.wkv5_step import eager as step


def _given(*projections: torch.Tensor | None) -> list[torch.Tensor]:
    return [weight for weight in projections if weight is not None]


def _project(mixed: torch.Tensor, weights: list[torch.Tensor], w: torch.Tensor) -> list[torch.Tensor | None]:
    """r, k, v and the gate (or None), (B, H, N) each."""
    heads = (mixed.shape[1], *w.shape)
    made = [F.linear(a, b).view(heads) for a, b in zip(mixed, weights, strict=True)]
    return [*made, None][:4]


def forward(x, last, mix, receptance, key, value, gate, w, u, weight, bias, initial_state, eps):
    mixed = shift.forward(x[:, None], mix, last)[:, :, 0]
    r, k, v, g = _project(mixed, _given(receptance, key, value, gate), w)
    return step.forward(r, k, v, w, u, weight, bias, g, initial_state, eps)


def backward(
    grads, outputs, x, last, mix, receptance, key, value, gate, w, u, weight, bias, initial_state, eps, *, needs
):  # fmt: skip
    """In float32 (float64 for float64) throughout: what is rounded between products adds up in the gradients."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    now, before = x[:, None].to(wide), None if last is None else last.to(wide)
    weights = [t.to(wide) for t in _given(receptance, key, value, gate)]
    mixed = shift.forward(now, mix, before)[:, :, 0]
    r, k, v, g = _project(mixed, weights, w)
    every = [True, True, True, *needs[7:11], True, needs[11]]
    dr, dk, dv, *parameters, dg, dstate = step.backward(
        grads, outputs, r, k, v, w, u, weight, bias, g, initial_state, eps, needs=every
    )
    if dr is None:  # nothing to sum over
        return [None] * 12
    by_projection = [torch.zeros_like(dr) if d is None else d for d in (dr, dk, dv, dg)][: len(weights)]
    flat = [d.flatten(1) for d in by_projection]
    products = [d.T @ m if need else None for d, m, need in zip(flat, mixed, needs[3:7], strict=False)]
    dx = dmix = dlast = None
    if any(needs[:3]):
        dmixed = torch.stack([d @ b for d, b in zip(flat, weights, strict=True)])[:, :, None]
        dx, dmix, dlast = shift.backward([dmixed], None, now, mix, before, needs=[needs[0], needs[2], needs[1]])
        dx = None if dx is None else dx[:, 0]
    return [dx, dlast, dmix, *[*products, None][:4], *parameters, dstate]
