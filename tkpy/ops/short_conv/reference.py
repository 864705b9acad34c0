"""short_conv in float64: the definition, a sum over taps of the sequence that the state and x form."""

from __future__ import annotations

from itertools import pairwise

import torch


def _one(x, weight, bias, before, activation):
    """A sequence (.., C, L), or several of one length, after the samples `before`; and its last ones."""
    taps, length = weight.shape[1], x.shape[-1]
    sequence = torch.cat([before.double(), x.double()], dim=-1)
    y = torch.zeros_like(sequence[..., taps - 1 :])
    for j in range(taps):
        y = y + weight[:, j, None].double() * sequence[..., j : j + length]
    if bias is not None:
        y = y + bias[:, None].double()
    if activation == "silu":
        y = y / (1 + torch.exp(-y))
    return y, sequence[..., length:]


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    activation: str,
    output_final_state: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    count = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = x.new_zeros(count, x.shape[1], weight.shape[1] - 1) if initial_state is None else initial_state
    if cu_seqlens is None:
        y, final = _one(x, weight, bias, state, activation)
    else:
        spans = enumerate(pairwise(cu_seqlens.tolist()))
        parts = [_one(x[..., a:b], weight, bias, state[i : i + 1], activation) for i, (a, b) in spans]
        y = torch.cat([x[..., :0].double(), *(part for part, _ in parts)], dim=-1)
        final = torch.cat([state[:0].double(), *(last for _, last in parts)])
    return y.to(x.dtype), final.to(x.dtype) if output_final_state else x.new_empty(0)
