"""rms_norm in plain PyTorch: float32 statistics (float64 for float64 inputs), gradient in closed form."""

from __future__ import annotations

import torch


def _scale(wide: torch.Tensor, eps: float, eps_inside_sqrt: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 / denominator, d(denominator)/d(mean square)) per row."""
    mean_square = wide.square().mean(-1, keepdim=True)
    root = (mean_square + eps).sqrt() if eps_inside_sqrt else mean_square.sqrt()
    denominator = root if eps_inside_sqrt else root + eps
    return 1 / denominator, 0.5 / root.clamp_min(1e-30)  # a row of zeros has gradient w dy / d, not NaN


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float, eps_inside_sqrt: bool) -> torch.Tensor:
    wide = _wide(x)
    inverse, _ = _scale(wide, eps, eps_inside_sqrt)
    return (wide * inverse * weight).to(x.dtype)


def backward(grads, outputs, x, weight, eps, eps_inside_sqrt, *, needs):
    """dx = w dy / d - x * mean(w dy x) * 2 d'(ms) / d^2 with d the denominator; dw = sum over rows of dy x / d."""
    (dy,) = grads
    if dy is None:
        return [None, None]
    wide, dy = _wide(x), _wide(dy)
    inverse, slope = _scale(wide, eps, eps_inside_sqrt)
    dx = dw = None
    if needs[0]:
        weighted = dy * weight
        along = (weighted * wide).mean(-1, keepdim=True)
        dx = weighted * inverse - wide * (along * 2 * slope * inverse.square())
    if needs[1]:
        dw = (dy * wide * inverse).reshape(-1, x.shape[-1]).sum(0)
    return [dx, dw]
