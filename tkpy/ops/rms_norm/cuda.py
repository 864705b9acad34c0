"""rms_norm by the compiled kernels rows_norm_*: on an sm_90 GPU, or in the emulator."""

from __future__ import annotations

from tkpy.ops import rows


def forward(x, weight, residual, seed, eps, eps_inside_sqrt, dropout):
    y, z, _, _ = rows.norm_forward("rms_norm", x, weight, None, residual, seed, eps, eps_inside_sqrt, dropout)
    return y, z


def backward(grads, outputs, x, weight, residual, seed, eps, eps_inside_sqrt, dropout, *, needs):
    (dy, dz), (z,) = grads, outputs
    dx, dw, _, dresidual = rows.norm_backward(
        "rms_norm", dy, dz, z, x, weight, None, residual, seed, None, eps, eps_inside_sqrt, dropout, needs[1], False
    )
    return [dx, dw, dresidual, None]
