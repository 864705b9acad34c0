"""monarch_multiply as two batched GEMMs; the permutations are views of their operands.

The product of the first factor is an output of the torch op where the gradient of the second wants it and the backend
that was expected would not make it again.
"""

from __future__ import annotations

import math

import torch


def _first(x: torch.Tensor, rows: int, k: int, width: int) -> torch.Tensor:
    """Vectors of k consecutive blocks, as (k, rows, width)."""
    return x.reshape(rows, k, width).transpose(0, 1)


def _second(x: torch.Tensor, rows: int, l: int, width: int) -> torch.Tensor:
    """Vectors of l interleaved blocks, as (l, rows, width)."""
    return x.reshape(rows, width, l).permute(2, 0, 1)


def _middle(x, w1, rows):
    k, q, p = w1.shape
    middle = x.new_empty(rows, k, q)
    torch.bmm(_first(x, rows, k, p), w1.transpose(1, 2), out=middle.transpose(0, 1))
    return middle


def forward(x, w1, w2, keep):
    (k, q, _), (l, s, r) = w1.shape, w2.shape
    rows = math.prod(x.shape[:-1])
    middle = _middle(x, w1, rows)
    y = torch.bmm(_second(middle, rows, l, r), w2.transpose(1, 2))
    kept = middle.reshape(*x.shape[:-1], k * q) if keep else x.new_empty(*x.shape[:-1], 0)
    return y.permute(1, 2, 0).reshape(*x.shape[:-1], s * l), kept


def backward(grads, outputs, x, w1, w2, keep, *, needs):
    dy, dmiddle = grads
    (middle,) = outputs
    (k, q, p), (l, s, r) = w1.shape, w2.shape
    rows = math.prod(x.shape[:-1])
    dx = dw1 = dw2 = None
    if dy is not None:
        dblocks = _second(dy, rows, l, s)
        if needs[2]:
            middle = middle if keep else _middle(x, w1, rows)
            dw2 = torch.bmm(dblocks.transpose(1, 2), _second(middle, rows, l, r))
        through = torch.bmm(dblocks, w2).permute(1, 2, 0).reshape(rows, k * q)
        dmiddle = through if dmiddle is None else through + dmiddle.reshape(rows, k * q)
    if dmiddle is None:
        return [None, None, None]
    dblocks = _first(dmiddle, rows, k, q)
    if needs[0]:
        dx = dblocks.new_empty(rows, k, p)
        torch.bmm(dblocks, w1, out=dx.transpose(0, 1))
        dx = dx.reshape(x.shape)
    if needs[1]:
        dw1 = torch.bmm(dblocks.transpose(1, 2), _first(x, rows, k, p))
    return [dx, dw1, dw2]
