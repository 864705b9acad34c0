"""merge_state in plain PyTorch, in the log-sum-exp's dtype.

With w_i = exp(lse_i - lse):   dout_i = w_i dout,   dlse_i = w_i (dlse + dout . (out_i - out))
"""

from __future__ import annotations

import torch


def _weights(lse1, lse2):
    """(lse, w1, w2), the weights like rows of out: (..., S, H, 1); of the difference, so exact where lse is large."""
    lse1, lse2 = (t.masked_fill(t.isinf(), -torch.inf) for t in (lse1, lse2))
    ahead = lse1 - lse2
    weights = (ahead.sigmoid(), (-ahead).sigmoid())
    empty = lse1.isneginf() & lse2.isneginf()
    return torch.logaddexp(lse1, lse2), *(w.masked_fill(empty, 0.0).transpose(-1, -2).unsqueeze(-1) for w in weights)


def _part(out, weight):
    """A part in the weights' dtype, 0 where it has no say."""
    return out.to(weight.dtype).masked_fill(weight == 0, 0.0)


def forward(out1, lse1, out2, lse2):
    lse, w1, w2 = _weights(lse1, lse2)
    return (w1 * _part(out1, w1) + w2 * _part(out2, w2)).to(out1.dtype), lse


def backward(grads, outputs, out1, lse1, out2, lse2, *, needs):
    dout, dlse = grads
    _, w1, w2 = _weights(lse1, lse2)
    dout = torch.zeros_like(w1) if dout is None else dout.to(w1.dtype)
    parts = [_part(out1, w1), _part(out2, w2)]
    mean = w1 * parts[0] + w2 * parts[1]
    found = []
    for part, weight in zip(parts, (w1, w2), strict=True):
        slope = (dout * (part - mean)).sum(-1, keepdim=True)
        if dlse is not None:
            slope = slope + dlse.transpose(-1, -2).unsqueeze(-1)
        found += [(weight * dout).expand_as(part), (weight * slope).squeeze(-1).transpose(-1, -2)]
    return found
