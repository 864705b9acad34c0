"""fft_conv in float64 without any FFT: the (L, L) matrix of taps, applied channel by channel."""

import torch


def taps(k: torch.Tensor, k_reverse: torch.Tensor | None, length: int) -> torch.Tensor:
    """(H, L, L): the tap that output t (row) applies to input i (column), k[t - i] or k_reverse[i - t - 1]."""
    t = torch.arange(length, device=k.device)
    lag = t[:, None] - t[None, :]
    reverse = k.new_zeros(k.shape[0], 0) if k_reverse is None else k_reverse
    # One row of taps: lag -Lr .. -1, then 0 .. Lk-1, then a zero for every lag outside.
    row = torch.cat([reverse.flip(-1), k, k.new_zeros(k.shape[0], 1)], -1)
    index = lag + reverse.shape[1]
    outside = (index < 0) | (index >= row.shape[1] - 1)
    return row[:, index.masked_fill(outside, row.shape[1] - 1)]


def forward(u, k, k_reverse, skip, pre_gate, post_gate):
    v = u.double() if pre_gate is None else u.double() * pre_gate.double()
    reverse = None if k_reverse is None else k_reverse.double()
    y = torch.einsum("hti,bhi->bht", taps(k.double(), reverse, u.shape[-1]), v)
    if skip is not None:
        y = y + skip.double()[:, None] * v
    if post_gate is not None:
        y = post_gate.double() * y
    return y.to(u.dtype)
