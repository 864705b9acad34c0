"""rms_norm in Triton.

forward    z = residual + dropout(x),  y = w z / d,  d = sqrt(ms + eps)  or  sqrt(ms) + eps,  ms = mean(z^2)
backward   d = w dy / d - z * mean(w dy z) * 2 d'(ms) / d^2 + dz;  dresidual = d,  dx = dropout(d) by the same mask
           dw = sum over rows of dy z / d        each program adds its rows; torch adds the partial sums, in fixed order
kernels    tkpy/ops/norm_triton.py: one program a row, or a block of rows; rows wider than 16384 chunk by chunk
shapes     x, residual, z, y and their gradients (M, D) row-contiguous; w (D,); partial dw (programs, D) float32
precision  statistics, products and dw in float32; z rounded before its statistics; outputs rounded once
limits     any M and D (0 too) below 2^31; compute capability 8.0 or newer
cost       forward 2 M D elements moved (4 with a residual), backward 3 (6): bound by memory
"""

from __future__ import annotations

from tkpy.ops import norm_triton


def forward(x, weight, residual, seed, eps, eps_inside_sqrt, dropout):
    y, z, _, _ = norm_triton.forward(False, x, weight, None, residual, seed, eps, eps_inside_sqrt, dropout)
    return y, z


def backward(grads, outputs, x, weight, residual, seed, eps, eps_inside_sqrt, dropout, *, needs):
    dx, dw, _, dresidual = norm_triton.backward(
        False, grads, outputs[0], x, weight, residual, seed, None, eps, eps_inside_sqrt, dropout, (needs[1], False)
    )
    return [dx, dw, dresidual, None]


AHEAD_OF_TIME = norm_triton.ahead_of_time(False)
