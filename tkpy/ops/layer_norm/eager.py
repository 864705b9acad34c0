"""layer_norm by torch's native kernels, which keep float32 statistics; the backward reads the saved ones.

The CPU kernel keeps them in the parameters' dtype, and takes float32 parameters beside a low-precision x; the CUDA
kernel wants x and parameters in one dtype. `_kernel_inputs` gives each what makes it exact.
"""

from __future__ import annotations

import torch

aten = torch.ops.aten


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _kernel_inputs(x, weight, bias):
    """x, weight, bias in dtypes that the device's kernel computes with float32 (float64) statistics."""
    wide, low = _wide(x), x.dtype in (torch.bfloat16, torch.float16)
    if low and x.device.type == "cpu":
        weight = x.new_ones(x.shape[-1], dtype=wide) if weight is None else weight
        bias = x.new_zeros(x.shape[-1], dtype=wide) if bias is None else bias
    elif all(p is None or p.dtype == x.dtype for p in (weight, bias)):
        return x, weight, bias
    else:
        x = x.to(wide)
    return x, None if weight is None else weight.to(wide), None if bias is None else bias.to(wide)


def forward(x, weight, bias, eps):
    if x.shape[-1] == 0:
        row = x.new_zeros((*x.shape[:-1], 1), dtype=_wide(x))
        return x.clone(), row, row.clone()
    wide_x, w, b = _kernel_inputs(x, weight, bias)
    y, mean, inverse = aten.native_layer_norm(wide_x, [x.shape[-1]], w, b, eps)
    return y.to(x.dtype), mean, inverse


def backward(grads, outputs, x, weight, bias, eps, *, needs):
    (dy, *_), (mean, inverse) = grads, outputs
    if dy is None or x.shape[-1] == 0:
        return [None, None, None]
    wide_x, w, b = _kernel_inputs(x, weight, bias)
    dy = dy.to(wide_x.dtype)
    return list(aten.native_layer_norm_backward(dy, wide_x, [x.shape[-1]], mean, inverse, w, b, needs))
