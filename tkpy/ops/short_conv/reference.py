"""short_conv in float64: the definition, a sum over taps of the sequence that the state and x form."""

from __future__ import annotations

import torch


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    activation: str,
    output_final_state: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, channels, length = x.shape
    taps = weight.shape[1]
    before = x.new_zeros(batch, channels, taps - 1) if initial_state is None else initial_state
    sequence = torch.cat([before.double(), x.double()], dim=-1)
    y = torch.zeros_like(sequence[:, :, taps - 1 :])
    for j in range(taps):
        y = y + weight[:, j, None].double() * sequence[:, :, j : j + length]
    if bias is not None:
        y = y + bias[:, None].double()
    if activation == "silu":
        y = y / (1 + torch.exp(-y))
    state = sequence[:, :, length:] if output_final_state else sequence.new_empty(0)
    return y.to(x.dtype), state.to(x.dtype)
