"""blockdiag_linear in float64: block after block."""

from __future__ import annotations

import torch


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shuffle: bool, out_features: int
) -> torch.Tensor:
    nblocks, _, width = weight.shape
    padded = torch.nn.functional.pad(x.double(), (0, nblocks * width - x.shape[-1]))
    if shuffle:  # channel g * width + c moves to c * nblocks + g
        order = [g * width + c for c in range(width) for g in range(nblocks)]
        padded = padded[..., order]
    blocks = [
        torch.einsum("...i,oi->...o", padded[..., k * width : (k + 1) * width], weight[k].double())
        for k in range(nblocks)
    ]
    y = torch.cat(blocks, -1)[..., :out_features]
    if bias is not None:
        y = y + bias.double()
    return y.to(x.dtype)
