"""layer_norm by the compiled kernels rows_norm_*: on an sm_90 GPU, or in the emulator."""

from __future__ import annotations

from tkpy.ops import rows


def forward(x, weight, bias, residual, seed, eps, dropout):
    y, z, mean, rstd = rows.norm_forward("layer_norm", x, weight, bias, residual, seed, eps, True, dropout)
    return y, mean, rstd, z


def backward(grads, outputs, x, weight, bias, residual, seed, eps, dropout, *, needs):
    (dy, _, _, dz), (mean, rstd, z) = grads, outputs
    dx, dw, db, dresidual = rows.norm_backward(
        "layer_norm", dy, dz, z, x, weight, bias, residual, seed, (mean, rstd), eps, True, dropout, *needs[1:3]
    )
    return [dx, dw, db, dresidual, None]
