"""rms_norm in float64, as the formula reads."""

import torch

from tkpy.ops import residual as stream


def forward(x, weight, residual, seed, eps, eps_inside_sqrt, dropout):
    z = stream.stream(x, residual, seed, dropout, torch.float64)
    wide = z.double()
    mean_square = (wide * wide).mean(-1, keepdim=True)
    rms = (mean_square + eps).sqrt() if eps_inside_sqrt else mean_square.sqrt() + eps
    y = (weight.double() * wide / rms).to(x.dtype)
    return y, z if stream.joins(residual, dropout) else x.new_empty(0)
