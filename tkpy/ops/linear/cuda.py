"""linear by the compiled kernel `gemm`: on an sm_90 GPU (backend "cuda") or in the emulator (backend "emulator").

The epilogue of the kernel adds the bias in float32, applies gelu, gelu_tanh, silu, relu or relu2 and adds a residual of
x's dtype. sigmoid and tanh, and a residual of another dtype (under autocast), follow in torch. Operands go in as they
are when one of their dimensions is contiguous; others are copied first.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.linear.eager import gradients

#: Activations of the kernel's epilogue: our names -> its names.
EPILOGUE = {
    None: "none",
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "silu": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
}
AFTERWARDS = {"sigmoid": torch.sigmoid_, "tanh": torch.tanh_}


def _operand(matrix: torch.Tensor) -> torch.Tensor:
    """One dimension contiguous, as the kernel needs it."""
    if any(stride == 1 or size == 1 for stride, size in zip(matrix.stride(), matrix.shape, strict=True)):
        return matrix
    return matrix.contiguous()


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """act(a b + bias) + residual; a (M, K), b (K, N), any strides; contiguous."""
    a, b = _operand(a), _operand(b)
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = a.new_empty(a.shape[0], b.shape[1])
    launch("gemm", a, b, out, bias, residual, EPILOGUE[activation], op="linear")
    return out


def forward(x, weight, bias, residual, activation):
    shape = (*x.shape[:-1], weight.shape[0])
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    inside = activation in EPILOGUE
    fused = residual is not None and inside and residual.dtype == x.dtype
    added = residual.reshape(rows.shape[0], weight.shape[0]) if fused else None
    y = product(rows, weight.t(), bias, added, activation if inside else None).view(shape)
    if not inside:
        y = AFTERWARDS[activation](y)
    return y if residual is None or fused else y + residual


def backward(grads, outputs, x, weight, bias, residual, activation, *, needs):
    return gradients(product, grads, x, weight, bias, activation, needs)
