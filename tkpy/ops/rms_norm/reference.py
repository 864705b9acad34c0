"""rms_norm in float64, as the formula reads."""

import torch


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float, eps_inside_sqrt: bool) -> torch.Tensor:
    wide = x.double()
    mean_square = (wide * wide).mean(-1, keepdim=True)
    rms = (mean_square + eps).sqrt() if eps_inside_sqrt else mean_square.sqrt() + eps
    return (weight.double() * wide / rms).to(x.dtype)
