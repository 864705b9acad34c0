"""linear by torch's GEMMs; the backward is two GEMMs more, and a third (the pre-activation) only where it is needed.

Products come out in x's dtype (accumulated in float32 by the GEMM); the activations compute in float32 inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

aten = torch.ops.aten

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "relu2": lambda z: z.relu_().square_(),
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": lambda z: F.silu(z, inplace=True),
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
}

#: (dy, z) -> dy * act'(z); `z` may be overwritten.
SLOPES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "relu": lambda dy, z: aten.threshold_backward(dy, z, 0),
    "relu2": lambda dy, z: z.relu_().mul_(2).mul_(dy),
    "gelu": aten.gelu_backward,
    "gelu_tanh": lambda dy, z: aten.gelu_backward(dy, z, approximate="tanh"),
    "silu": aten.silu_backward,
    "sigmoid": lambda dy, z: aten.sigmoid_backward(dy, z.sigmoid_()),
    "tanh": lambda dy, z: aten.tanh_backward(dy, z.tanh_()),
}


def _pre_activation(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    z = F.linear(x, weight, bias)
    if z.dtype == torch.float16:  # gelu and silu of a product that overflowed to -inf are 0, not NaN
        z.clamp_min_(torch.finfo(z.dtype).min)
    return z


def forward(x, weight, bias, residual, activation):
    if activation is None:
        y = F.linear(x, weight, bias)
    else:
        y = ACTIVATIONS[activation](_pre_activation(x, weight, bias))
    if residual is None:
        return y
    return y.add_(residual) if y.dtype == residual.dtype else y + residual


def backward(grads, outputs, x, weight, bias, residual, activation, *, needs):
    """dz = dy act'(z); dx = dz W, dW = dz^T x, db = the sum of dz over rows, dresidual = dy."""
    (dy,) = grads
    if dy is None:
        return [None] * 4
    dz = dy.to(x.dtype)
    if activation is not None and any(needs[:3]):
        dz = SLOPES[activation](dz, _pre_activation(x, weight, bias))
    rows = math.prod(x.shape[:-1])
    flat = dz.reshape(rows, weight.shape[0])
    dx = torch.matmul(dz, weight) if needs[0] else None
    dw = flat.t() @ x.reshape(rows, x.shape[-1]) if needs[1] else None
    db = flat.sum(0) if needs[2] else None
    return [dx, dw, db, dy]
