"""layer_norm in float64, as the formula reads."""

from __future__ import annotations

import torch

from tkpy.ops import residual as stream


def forward(x, weight, bias, residual, seed, eps, dropout):
    z = stream.stream(x, residual, seed, dropout, torch.float64)
    wide = z.double()
    mean = wide.sum(-1, keepdim=True) / max(x.shape[-1], 1)
    variance = (wide - mean).square().sum(-1, keepdim=True) / max(x.shape[-1], 1)
    inverse = (variance + eps).rsqrt()
    y = (wide - mean) * inverse
    if weight is not None:
        y = y * weight.double()
    if bias is not None:
        y = y + bias.double()
    statistics = stream.wide_dtype(x)
    z = z if stream.joins(residual, dropout) else x.new_empty(0)
    return y.to(x.dtype), mean.to(statistics), inverse.to(statistics), z
