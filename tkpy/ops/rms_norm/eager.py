"""rms_norm in plain PyTorch: float32 statistics (float64 for float64 inputs), gradient in closed form."""

from __future__ import annotations

from typing import Any

import torch

from tkpy.ops import residual as stream


def _scale(wide: torch.Tensor, eps: float, eps_inside_sqrt: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 / denominator, d(denominator)/d(mean square)) per row."""
    mean_square = wide.square().mean(-1, keepdim=True)
    root = (mean_square + eps).sqrt() if eps_inside_sqrt else mean_square.sqrt()
    denominator = root if eps_inside_sqrt else root + eps
    return 1 / denominator, 0.5 / root.clamp_min(1e-30)  # a row of zeros has gradient w dy / d, not NaN


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(stream.wide_dtype(x))


def forward(x, weight, residual, seed, eps, eps_inside_sqrt, dropout):
    z = stream.stream(x, residual, seed, dropout, stream.wide_dtype(x))
    wide = _wide(z)
    inverse, _ = _scale(wide, eps, eps_inside_sqrt)
    y = (wide * inverse * weight).to(x.dtype)
    return y, z if stream.joins(residual, dropout) else x.new_empty(0)


def backward(grads, outputs, x, weight, residual, seed, eps, eps_inside_sqrt, dropout, *, needs):
    """dz = w dy / d - z * mean(w dy z) * 2 d'(ms) / d^2 with d the denominator; dw = sum over rows of dy z / d."""
    (dy, dz), z = grads, outputs[0] if stream.joins(residual, dropout) else x
    dz = stream.incoming(dz, residual, dropout)
    if (dy is None and dz is None) or not x.numel():
        return [None, None, None, None]
    total: Any = 0.0 if dz is None else _wide(dz)
    dw = None
    if dy is not None:
        wide, dy = _wide(z), _wide(dy)
        inverse, slope = _scale(wide, eps, eps_inside_sqrt)
        weighted = dy * weight
        along = (weighted * wide).mean(-1, keepdim=True)
        total = total + weighted * inverse - wide * (along * 2 * slope * inverse.square())
        if needs[1]:
            dw = (dy * wide * inverse).reshape(-1, x.shape[-1]).sum(0)
    dx, dresidual = stream.gradients(total, x, residual, seed, dropout)
    return [dx, dw, dresidual, None]
