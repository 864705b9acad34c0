"""hyena_mixer in float64 and complex128: the filters as sums over taps, then one step of the recurrence at a time."""

from __future__ import annotations

import torch


def forward(z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state):
    (batch, length, channels), (width, modes), taps = z.shape, poles.shape, weight.shape[1]
    before = z.new_zeros(batch, channels, taps - 1) if fir_state is None else fir_state
    inputs = torch.cat([before.double(), z.mT.double()], -1)
    filtered = inputs.new_zeros(batch, channels, length)
    for j in range(taps):
        filtered = filtered + weight[:, j, None].double() * inputs[..., j : j + length]
    if bias is not None:
        filtered = filtered + bias[:, None].double()
    x2, x1, v = (part.flatten(1, 2) for part in filtered.unflatten(1, (groups, 3, width // groups)).unbind(2))
    u = x1 * v
    p, r = poles.to(torch.complex128), residues.to(torch.complex128)
    x = p.new_zeros(batch, width, modes) if initial_state is None else initial_state.to(torch.complex128)
    steps = [u.new_zeros(batch, width, 0)]
    for t in range(length):
        x = p * x + u[:, :, t, None]
        steps.append((r * x).real.sum(-1, keepdim=True))
    y = torch.cat(steps, -1)
    if skip is not None:
        y = y + skip.double()[:, None] * u
    y = (x2 * y).mT.to(z.dtype)
    if not output_final_state:
        return y, z.new_empty(0), x.new_empty(0).to(torch.complex128 if z.dtype == torch.float64 else torch.complex64)
    x = x.to(torch.complex128 if z.dtype == torch.float64 else torch.complex64)
    return y, inputs[..., length:].to(z.dtype), x
