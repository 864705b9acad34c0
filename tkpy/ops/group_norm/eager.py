"""group_norm on torch's native layer norm, in float32 (float64 for float64); the backward reads the statistics."""

from __future__ import annotations

import torch


def _wide(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def _affine(normal: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    if weight is not None:
        normal = normal * _wide(weight, normal)
    return normal if bias is None else normal + _wide(bias, normal)


def forward(x, weight, bias, gate, eps):
    wide = _wide(x, x)
    if x.numel() == 0:
        row = wide.new_zeros(*x.shape[:-1], 1)
        return x.new_empty(x.shape), row, row.clone()
    normal, mean, inverse = torch.ops.aten.native_layer_norm(wide, [x.shape[-1]], None, None, eps)
    y = _affine(normal, weight, bias)
    if gate is not None:
        y = y * torch.nn.functional.silu(_wide(gate, x))
    return y.to(x.dtype), mean, inverse


def backward(grads, outputs, x, weight, bias, gate, eps, *, needs):
    """With n the normalised x, z = weight n + bias, s = sigmoid(gate), h = dy silu(gate), g = weight h:

    dx = inverse (g - mean(g) - n mean(g n)),  dgate = dy z s (1 + gate (1 - s)),  dweight = sum h n,  dbias = sum h
    """
    (dy, *_), (mean, inverse) = grads, outputs
    if dy is None or x.numel() == 0:
        return [None, None, None, None]
    h, normal = _wide(dy, x), (_wide(x, x) - mean) * inverse
    dgate = None
    if gate is not None:
        wide = _wide(gate, x)
        s = wide.sigmoid()
        if needs[3]:
            dgate = h * _affine(normal, weight, bias) * s * (1 + wide * (1 - s))
        h = h * wide * s
    g = h if weight is None else h * _wide(weight, x)
    dx = inverse * (g - g.mean(-1, keepdim=True) - normal * (g * normal).mean(-1, keepdim=True)) if needs[0] else None
    dweight = (h * normal).reshape(-1, *x.shape[-2:]).sum(0) if needs[1] else None
    dbias = h.reshape(-1, *x.shape[-2:]).sum(0) if needs[2] else None
    return [dx, dweight, dbias, dgate]
