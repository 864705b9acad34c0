"""blockdiag_linear as a GEMM per block (one batched GEMM where blocks are many, or on a GPU), written into the output.

Rows stay rows: the blocks of x and of the output are views (rows, nblocks, width), transposed for the GEMM.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

MAX_LOOP = 16  # blocks, beyond which the calls cost more than the copies


def _blocks(x: torch.Tensor, nblocks: int, width: int) -> torch.Tensor:
    """(..., n) with n <= nblocks * width, zero-padded, as (nblocks, rows, width)."""
    x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if x.shape[-1] != nblocks * width:
        x = F.pad(x, (0, nblocks * width - x.shape[-1]))
    return x.reshape(len(x), nblocks, width).transpose(0, 1)


def _shuffled(blocks: torch.Tensor) -> torch.Tensor:
    """Channel (g, c) of the rows to (c, g)."""
    nblocks, rows, width = blocks.shape
    return blocks.permute(1, 2, 0).reshape(rows, nblocks, width).transpose(0, 1)


def _unshuffled(blocks: torch.Tensor) -> torch.Tensor:
    nblocks, rows, width = blocks.shape
    return blocks.transpose(0, 1).reshape(rows, width, nblocks).permute(2, 0, 1)


def _batched(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out[k] = a[k] b[k]. The CPU's batched GEMM copies strided operands and results (up to 5x slower in bfloat16)."""
    if a.device.type != "cpu" or len(a) > MAX_LOOP:
        return torch.bmm(a, b, out=out)
    for k in range(len(a)):
        torch.mm(a[k], b[k], out=out[k])
    return out


def _multiply(blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(nblocks, rows, i) times (nblocks, i, o), the result laid out with the rows outermost."""
    nblocks, rows, _ = blocks.shape
    out = blocks.new_empty(rows, nblocks, weight.shape[-1])
    return _batched(blocks, weight, out.transpose(0, 1))


def _rows(blocks: torch.Tensor, like: torch.Tensor, features: int) -> torch.Tensor:
    """(nblocks, rows, width) as (..., features), the padding cropped."""
    nblocks, rows, width = blocks.shape
    flat = blocks.transpose(0, 1).reshape(rows, nblocks * width)[:, :features]
    return flat.reshape(*like.shape[:-1], features)


def forward(x, weight, bias, shuffle, out_features):
    blocks = _blocks(x, weight.shape[0], weight.shape[2])
    y = _rows(_multiply(_shuffled(blocks) if shuffle else blocks, weight.transpose(1, 2)), x, out_features)
    return y if bias is None else y.add_(bias)


def backward(grads, outputs, x, weight, bias, shuffle, out_features, *, needs):
    """dx_k = dy_k W_k and dW_k = dy_k^T x_k for each block k; dbias = the sum of dy over rows."""
    (dy,) = grads
    if dy is None:
        return [None, None, None]
    nblocks, out_width, in_width = weight.shape
    dblocks = _blocks(dy, nblocks, out_width)
    dx = dw = db = None
    if needs[0]:
        dx = _multiply(dblocks, weight)
        dx = _rows(_unshuffled(dx) if shuffle else dx, x, x.shape[-1])
    if needs[1]:
        blocks = _blocks(x, nblocks, in_width)
        blocks = _shuffled(blocks) if shuffle else blocks
        dw = _batched(dblocks.transpose(1, 2), blocks, torch.empty_like(weight, memory_format=torch.contiguous_format))
    if needs[2]:
        db = dy.reshape(math.prod(dy.shape[:-1]), out_features).sum(0)
    return [dx, dw, db]
