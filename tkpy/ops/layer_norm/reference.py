"""layer_norm in float64, as the formula reads."""

from __future__ import annotations

import torch


def forward(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = x.double()
    mean = wide.sum(-1, keepdim=True) / max(x.shape[-1], 1)
    variance = (wide - mean).square().sum(-1, keepdim=True) / max(x.shape[-1], 1)
    inverse = (variance + eps).rsqrt()
    y = (wide - mean) * inverse
    if weight is not None:
        y = y * weight.double()
    if bias is not None:
        y = y + bias.double()
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    return y.to(x.dtype), mean.to(statistics), inverse.to(statistics)
