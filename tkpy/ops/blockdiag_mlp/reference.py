"""blockdiag_mlp in float64, from its definition."""

from __future__ import annotations

import torch

from tkpy.ops.blockdiag_linear.reference import forward as blockdiag
from tkpy.ops.gated_mlp.reference import ACTIVATIONS


def forward(
    x: torch.Tensor,
    gated: torch.Tensor,
    wo: torch.Tensor,
    bias: torch.Tensor | None,
    inner: int,
    out_features: int,
    activation: str,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    z = blockdiag(x.double(), gated, None, False, 2 * inner)
    gate, value = z.chunk(2, -1)
    h = ACTIVATIONS[activation](gate) * value
    y = blockdiag(h, wo, bias, False, out_features).to(x.dtype)
    return y, z.to(x.dtype) if keep else y.new_empty(*x.shape[:-1], 0)
