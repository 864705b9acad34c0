"""layer_norm by torch's native kernels, which keep float32 statistics; the backward reads the saved ones.

The CPU kernel keeps them in the parameters' dtype, and takes float32 parameters beside a low-precision x; the CUDA
kernel wants x and parameters in one dtype. `_kernel_inputs` gives each what makes it exact.
"""

from __future__ import annotations

import torch

from tkpy.ops import residual as stream

aten = torch.ops.aten


def _kernel_inputs(x, weight, bias):
    """x, weight, bias in dtypes that the device's kernel computes with float32 (float64) statistics."""
    wide, low = stream.wide_dtype(x), x.dtype in (torch.bfloat16, torch.float16)
    if low and x.device.type == "cpu":
        weight = x.new_ones(x.shape[-1], dtype=wide) if weight is None else weight
        bias = x.new_zeros(x.shape[-1], dtype=wide) if bias is None else bias
    elif all(p is None or p.dtype == x.dtype for p in (weight, bias)):
        return x, weight, bias
    else:
        x = x.to(wide)
    return x, None if weight is None else weight.to(wide), None if bias is None else bias.to(wide)


def forward(x, weight, bias, residual, seed, eps, dropout):
    z = stream.stream(x, residual, seed, dropout, stream.wide_dtype(x))
    kept = z if stream.joins(residual, dropout) else x.new_empty(0)
    if x.shape[-1] == 0:
        row = x.new_zeros((*x.shape[:-1], 1), dtype=stream.wide_dtype(x))
        return x.clone(), row, row.clone(), kept
    wide_z, w, b = _kernel_inputs(z, weight, bias)
    y, mean, inverse = aten.native_layer_norm(wide_z, [x.shape[-1]], w, b, eps)
    return y.to(x.dtype), mean, inverse, kept


def backward(grads, outputs, x, weight, bias, residual, seed, eps, dropout, *, needs):
    (dy, _, _, dz), (mean, inverse, kept) = grads, outputs
    z, dz = kept if stream.joins(residual, dropout) else x, stream.incoming(dz, residual, dropout)
    if (dy is None and dz is None) or x.shape[-1] == 0:
        return [None, None, None, None, None]
    total, dw, db = dz, None, None
    if dy is not None:
        wide_z, w, b = _kernel_inputs(z, weight, bias)
        sides = [needs[0] or needs[3], *needs[1:3]]
        found = aten.native_layer_norm_backward(dy.to(wide_z.dtype), wide_z, [x.shape[-1]], mean, inverse, w, b, sides)
        total, dw, db = found
        if total is not None and dz is not None:
            total = total.to(stream.wide_dtype(x)) + dz
    dx, dresidual = (None, None) if total is None else stream.gradients(total, x, residual, seed, dropout)
    return [dx, dw, db, dresidual, None]
