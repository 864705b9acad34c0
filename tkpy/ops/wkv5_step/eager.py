"""wkv5_step in plain PyTorch: the recurrence in float32 (float64 for float64), then group_norm's eager form.

backward: that of group_norm to dL/dy, and with D = dL/dy, G = dL/dS', a = sum_i r u k and ga = sum_j D v

    gr = S D + ga u k      gk = G v + ga r u      gv = k G + a D      gu = sum over rows of ga r k
    gS = d G + r D^T       gw = -exp(w) d sum over rows of (sum_j G S)
"""

from __future__ import annotations

import torch

from tkpy.ops.group_norm import eager as norm


def _wide(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def _rate(w: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """exp(w): what the logarithm of the decay loses; exp(-1e4) is 0 in float64 too, and 0 * 1e4 is not NaN."""
    return _wide(w, like).exp().clamp_max(1e4)


def _recur(r, k, v, u, state):
    """y (B, H, N) of wide inputs."""
    y = (r * u * k).sum(-1, keepdim=True) * v
    return y if state is None else y + (r[..., None, :] @ state).squeeze(-2)


def forward(r, k, v, w, u, weight, bias, gate, initial_state, eps):
    R, K, V, U = (_wide(x, r) for x in (r, k, v, u))
    before = None if initial_state is None else _wide(initial_state, r)
    y = _recur(R, K, V, U, before)
    state = K[..., None] * V[..., None, :]
    if before is not None:
        state.addcmul_(torch.exp(-_rate(w, r))[..., None], before)
    z, _, _ = norm.forward(y, weight, bias, None if gate is None else _wide(gate, r), eps)
    return z.to(r.dtype), state


def backward(grads, outputs, r, k, v, w, u, weight, bias, gate, initial_state, eps, *, needs):
    dz, G = grads
    if r.numel() == 0:
        return [None] * 9
    R, K, V, U = (_wide(x, r) for x in (r, k, v, u))
    before = None if initial_state is None else _wide(initial_state, r)
    D = dweight = dbias = dgate = None
    if dz is not None:
        args = (_recur(R, K, V, U, before), weight, bias, None if gate is None else _wide(gate, r), eps)
        needed = [True, *needs[5:8]]
        D, dweight, dbias, dgate = norm.backward([dz], norm.forward(*args)[1:], *args, needs=needed)
    D = torch.zeros_like(R) if D is None else D
    ga = (D * V).sum(-1, keepdim=True)
    gr, gk, gv = ga * U * K, ga * R * U, (R * U * K).sum(-1, keepdim=True) * D
    gu, gw, g_before = (ga * R * K).sum(0), None, None
    rate = _rate(w, r)
    decay = torch.exp(-rate)
    if G is not None:
        gk = gk + (G @ V[..., None]).squeeze(-1)
        gv = gv + (K[..., None, :] @ G).squeeze(-2)
    if before is not None:
        gr = gr + (before @ D[..., None]).squeeze(-1)
        g_before = R[..., None] * D[..., None, :]
        if G is not None:
            g_before.addcmul_(decay[..., None], G)
            gw = -rate * decay * (G * before).sum((0, -1))
    return [gr, gk, gv, gw, gu, dweight, dbias, dgate, g_before]
