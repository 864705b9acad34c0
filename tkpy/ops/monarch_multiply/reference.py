"""monarch_multiply in float64: both block-diagonal factors and the permutations between them, one index at a time."""

import torch


def forward(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    (k, q, p), (l, s, r) = w1.shape, w2.shape
    lead = x.shape[:-1]
    middle = torch.einsum("...kp,kqp->...kq", x.double().reshape(*lead, k, p), w1.double())
    middle = middle.reshape(*lead, k * q)
    strided = middle.reshape(*lead, r, l).transpose(-1, -2)  # entry a of block b is middle[a * l + b]
    y = torch.einsum("...lr,lsr->...ls", strided, w2.double())
    y = y.transpose(-1, -2).reshape(*lead, s * l)  # and entry c of the block's result goes to y[c * l + b]
    return y.to(x.dtype), middle.to(x.dtype) if keep else x.new_empty(*lead, 0)
