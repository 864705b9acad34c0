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


def forward(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor, activation: str) -> torch.Tensor:
    gate = ACTIVATIONS[activation](x.double() @ w1.double().T)
    return ((gate * (x.double() @ w2.double().T)) @ w3.double().T).to(x.dtype)
