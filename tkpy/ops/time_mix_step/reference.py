"""time_mix_step in float64: the token shift, the projections, and wkv5_step's oracle."""

from __future__ import annotations

import torch

from tkpy.ops.wkv5_step import reference as step


def forward(
    x, last, mix, receptance, key, value, gate, w, u, weight, bias, initial_state, eps
):  # fmt: skip
    now, before = x.double(), torch.zeros_like(x, dtype=torch.float64) if last is None else last.double()
    weights = [t for t in (receptance, key, value, gate) if t is not None]
    mixed = [m * now + (1 - m) * before for m in mix.double()]
    heads = (x.shape[0], *w.shape)
    r, k, v, *g = ((a @ b.double().T).reshape(heads) for a, b in zip(mixed, weights, strict=True))
    z, state = step.forward(r, k, v, w, u, weight, bias, g[0] if g else None, initial_state, eps)
    return z.to(x.dtype), state.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
