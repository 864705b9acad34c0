"""wkv5_step in float64, as the formulas read."""

from __future__ import annotations

import torch


def forward(r, k, v, w, u, weight, bias, gate, initial_state, eps):
    R, K, V = r.double(), k.double(), v.double()
    size = r.shape[-1]
    # exp(-exp(700)) is 0 as it should be, and its gradient 0 instead of 0 * inf.
    decay = torch.exp(-torch.exp(w.double().clamp(max=700.0)))[:, :, None]  # (H, N, 1)
    state = R.new_zeros(*r.shape, size) if initial_state is None else initial_state.double()
    kv = K[..., :, None] * V[..., None, :]  # (B, H, N, N), row = key channel
    y = (R[..., :, None] * (state + u.double()[:, :, None] * kv)).sum(-2)
    state = decay * state + kv
    count = max(size, 1)
    centred = y - y.sum(-1, keepdim=True) / count
    z = centred * (centred.square().sum(-1, keepdim=True) / count + eps).rsqrt()
    if weight is not None:
        z = z * weight.double()
    if bias is not None:
        z = z + bias.double()
    if gate is not None:
        z = z * gate.double() * gate.double().sigmoid()
    return z.to(r.dtype), state.to(torch.float64 if r.dtype == torch.float64 else torch.float32)
