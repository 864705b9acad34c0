"""linear in float64, as the formula reads."""

from __future__ import annotations

import math

import torch

ACTIVATIONS = {
    None: lambda z: z,
    "relu": lambda z: z.clamp_min(0),
    "relu2": lambda z: z.clamp_min(0) ** 2,
    "gelu": lambda z: z * torch.special.erfc(-z / math.sqrt(2)) / 2,
    "gelu_tanh": lambda z: z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z * torch.sigmoid(z),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    z = torch.einsum("...k,nk->...n", x.double(), weight.double())
    if bias is not None:
        z = z + bias.double()
    y = ACTIVATIONS[activation](z)
    if residual is not None:
        y = y + residual.double()
    return y.to(x.dtype if residual is None else residual.dtype)
