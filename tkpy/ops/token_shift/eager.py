"""token_shift as one broadcast lerp, in x's dtype where the mixes have it (torch computes in float32 inside)."""

from __future__ import annotations

import torch


def shifted(x: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
    """x one token later."""
    before = x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last[:, None]
    return torch.cat([before, x[:, :-1]], 1) if x.shape[1] else x


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def forward(x, mix, last):
    before = shifted(x, last)
    if mix.dtype == x.dtype:
        return torch.lerp(before, x, mix[:, None, None])
    wide = _wide(x)
    return torch.lerp(before.to(wide), x.to(wide), mix[:, None, None].to(wide)).to(x.dtype)


def backward(grads, outputs, x, mix, last, *, needs):
    """dx_t = sum_m mix dy_t + (1 - mix) dy_{t+1};  dmix = sum of dy (x_t - x_{t-1});  dlast = (1 - mix) dy_0."""
    (dy,) = grads
    if dy is None:
        return [None, None, None]
    dy, weight = dy.to(_wide(x)), mix[:, None, None].to(_wide(x))
    dx = dmix = dlast = None
    through = ((1 - weight) * dy).sum(0)  # to the token before
    if needs[0]:
        dx = (weight * dy).sum(0)
        dx[:, :-1] += through[:, 1:]
    if needs[1]:
        dmix = (dy * (x.to(dy.dtype) - shifted(x, last).to(dy.dtype))).sum((1, 2))
    if needs[2]:
        dlast = through[:, 0] if x.shape[1] else torch.zeros_like(last)
    return [dx, dmix, dlast]
