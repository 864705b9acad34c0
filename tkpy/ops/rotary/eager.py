"""rotary in plain PyTorch: float64 angles, float32 rotation (float64 for float64 x); the backward turns back."""

from __future__ import annotations

import torch


def _table(x: torch.Tensor, positions: torch.Tensor, base: float, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the angles, (..., S, 1, D/2)."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / max(half, 1))
    angle = (positions.double() / scaling)[..., None, None] * frequency
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return angle.cos().to(wide), angle.sin().to(wide)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dtype == cos.dtype:
        torch.mul(left, cos, out=y[..., :half]).addcmul_(right, sin, value=-1)
        torch.mul(right, cos, out=y[..., half:]).addcmul_(left, sin)
    else:  # a low-precision x is rounded once, at the end
        left, right = left.to(cos.dtype), right.to(cos.dtype)
        y[..., :half] = (left * cos).addcmul_(right, sin, value=-1)
        y[..., half:] = right.mul_(cos).addcmul_(left, sin)
    return y


def forward(x, positions, base, scaling):
    return _rotate(x, *_table(x, positions, base, scaling))


def backward(grads, outputs, x, positions, base, scaling, *, needs):
    (dy,) = grads
    if dy is None:
        return [None, None]
    cos, sin = _table(x, positions, base, scaling)
    return [_rotate(dy, cos, -sin), None]
