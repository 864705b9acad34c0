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


def _finite(z: torch.Tensor) -> torch.Tensor:
    """gelu and silu of a product that overflowed to -inf are 0, not NaN."""
    return z.clamp_min_(torch.finfo(z.dtype).min) if z.dtype == torch.float16 else z


def forward(x, weight, bias, residual, activation):
    if activation is None:
        y = F.linear(x, weight, bias)
    else:
        y = ACTIVATIONS[activation](_finite(F.linear(x, weight, bias)))
    if residual is None:
        return y
    return y.add_(residual) if y.dtype == residual.dtype else y + residual


def gradients(product, grads, x, weight, bias, activation, needs):
    """dz = dy act'(z); dx = dz W, dW = dz^T x, db = the sum of dz over rows, dresidual = dy. Transposes are strides.

    `product(a, b, bias)` is a b + bias: a (M, K), b (K, N), bias (N,) or None. Every backend brings its own.
    """
    (dy,) = grads
    if dy is None:
        return [None] * 4
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # (M, K)
    dz = dy.to(x.dtype).reshape(rows.shape[0], weight.shape[0])  # (M, N)
    if activation is not None and any(needs[:3]):
        dz = SLOPES[activation](dz, _finite(product(rows, weight.t(), bias)))
    dx = product(dz, weight, None).view(x.shape) if needs[0] else None
    dw = product(dz.t(), rows, None) if needs[1] else None
    db = dz.sum(0) if needs[2] else None
    return [dx, dw, db, dy]


def _product(a, b, bias):
    return a @ b if bias is None else torch.addmm(bias, a, b)


def backward(grads, outputs, x, weight, bias, residual, activation, *, needs):
    return gradients(_product, grads, x, weight, bias, activation, needs)
