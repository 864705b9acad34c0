"""gated_mlp in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "relu": torch.relu,
}


def forward(
    x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor, activation: str, keep: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    gate, value = x.double() @ w1.double().T, x.double() @ w2.double().T
    y = (ACTIVATIONS[activation](gate) * value) @ w3.double().T
    kept = torch.stack((gate, value)) if keep else gate.new_empty(2, *x.shape[:-1], 0)
    return y.to(x.dtype), kept.to(x.dtype)
