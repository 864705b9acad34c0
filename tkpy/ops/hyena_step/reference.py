"""hyena_step in float64 and complex128, as the formulas read."""

from __future__ import annotations

import torch


def forward(z, weight, bias, poles, residues, skip, fir_state, state, groups):
    batch, (width, modes), taps = z.shape[0], poles.shape, weight.shape[1]
    before = z.new_zeros(batch, 3 * width, taps - 1) if fir_state is None else fir_state
    inputs = torch.cat([before, z[..., None]], -1)
    filtered = (weight.double() * inputs.double()).sum(-1)
    if bias is not None:
        filtered = filtered + bias.double()
    x2, x1, v = (part.flatten(1) for part in filtered.unflatten(1, (groups, 3, width // groups)).unbind(2))
    u = x1 * v
    p, r = poles.to(torch.complex128), residues.to(torch.complex128)
    x = p.new_zeros(batch, width, modes) if state is None else state.to(torch.complex128)
    x = p * x + u[..., None]
    y = (r * x).real.sum(-1)
    if skip is not None:
        y = y + skip.double() * u
    y = x2 * y
    return y.to(z.dtype), inputs[..., 1:], x.to(torch.complex128 if z.dtype == torch.float64 else torch.complex64)
