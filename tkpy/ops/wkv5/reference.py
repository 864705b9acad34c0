"""wkv5 in float64, one token after the other, as the formula reads."""

from __future__ import annotations

from itertools import pairwise

import torch


def forward(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    output_final_state: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, heads, size = r.shape
    R, K, V = r.double(), k.double(), v.double()
    # exp(-exp(700)) is 0 as it should be, and its gradient 0 instead of 0 * inf.
    decay = torch.exp(-torch.exp(w.double().clamp(max=700.0)))[:, :, None]  # (H, N, 1)
    bonus = u.double()[:, :, None]
    spans = [(b, 0, length) for b in range(batch)]
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        spans = [(0, start, stop) for start, stop in pairwise(bounds)]
    y, states = [], []
    for i, (b, start, stop) in enumerate(spans):
        S = R.new_zeros(heads, size, size) if initial_state is None else initial_state[i].double()
        for t in range(start, stop):
            kv = K[b, t, :, :, None] * V[b, t, :, None, :]  # (H, N, N), row = key channel
            y.append((R[b, t, :, :, None] * (S + bonus * kv)).sum(1))
            S = decay * S + kv
        states.append(S)
    out = torch.stack(y).reshape(r.shape) if y else R.new_zeros(r.shape)
    if not output_final_state:
        final = R.new_empty(0)
    else:
        final = torch.stack(states) if states else R.new_empty(0, heads, size, size)
    wide = torch.float64 if r.dtype == torch.float64 else torch.float32
    return out.to(r.dtype), final.to(wide)
