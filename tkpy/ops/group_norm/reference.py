"""group_norm in float64, as the formula reads."""

from __future__ import annotations


def forward(x, weight, bias, gate, eps):
    wide = x.double()
    count = max(x.shape[-1], 1)
    mean = wide.sum(-1, keepdim=True) / count
    inverse = ((wide - mean).square().sum(-1, keepdim=True) / count + eps).rsqrt()
    y = (wide - mean) * inverse
    if weight is not None:
        y = y * weight.double()
    if bias is not None:
        y = y + bias.double()
    if gate is not None:
        y = y * gate.double() * gate.double().sigmoid()
    statistics = wide.dtype if x.dtype == wide.dtype else x.float().dtype
    return y.to(x.dtype), mean.to(statistics), inverse.to(statistics)
