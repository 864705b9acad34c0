"""layer_norm in Triton.

forward    z = residual + dropout(x),  y = w n + b,  n = (z - mean) r,  r = 1 / sqrt(var + eps)
backward   d = r (g - mean(g) - n mean(g n)) + dz,  g = w dy;  dresidual = d,  dx = dropout(d) by the same mask
           dw = sum of dy n,  db = sum of dy     each program adds its rows; torch adds the partial sums, in fixed order
kernels    tkpy/ops/norm_triton.py: one program a row, or a block of rows; rows wider than 16384 chunk by chunk, moments
           merged as they come, and then dw and db by columns
shapes     x, residual, z, y and their gradients (M, D) row-contiguous; w, b (D,); mean, r (M,) float32; partial dw, db
           (programs, D) float32
precision  statistics, products, dw and db in float32, the variance about the mean (no cancellation); z rounded before
           its statistics; outputs rounded once
limits     any M and D (0 too) below 2^31; compute capability 8.0 or newer
cost       forward 2 M D elements moved (4 with a residual), backward 3 (6), wide rows more: bound by memory
"""

from __future__ import annotations

from tkpy.ops import norm_triton


def forward(x, weight, bias, residual, seed, eps, dropout):
    y, z, mean, r = norm_triton.forward(True, x, weight, bias, residual, seed, eps, True, dropout)
    return y, mean, r, z


def backward(grads, outputs, x, weight, bias, residual, seed, eps, dropout, *, needs):
    (dy, _, _, dz), (mean, r, z) = grads, outputs
    dx, dw, db, dresidual = norm_triton.backward(
        True, (dy, dz), z, x, weight, residual, seed, (mean, r), eps, True, dropout, needs[1:3]
    )
    return [dx, dw, db, dresidual, None]


AHEAD_OF_TIME = norm_triton.ahead_of_time(True)
