"""blockdiag_linear by the compiled kernel `gemm`, all blocks in one launch: backends "cuda" and "emulator".

Channels stay where they are: a block is an outer coordinate of the GEMM's tensor maps (csrc/kernels/gemm/blocks.cpp).
Sizes that the number of blocks does not divide, sizes that are no multiple of 8, and shuffled channels go through the
GEMM's masked loads. The weight's gradient is a sum over rows, in shares where its tiles are few; torch adds them.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch

CLUSTERS = 132  # tiles in flight that a gradient is cut into: about two rounds of an H100's clusters of two CTAs


def _along(x: torch.Tensor) -> torch.Tensor:
    """Channels contiguous, as the kernel needs them."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """(..., n) -> (rows, n), also where a size is 0."""
    return _along(x.reshape(x.shape[:-1].numel(), x.shape[-1]))


def weights_of(weight: torch.Tensor) -> torch.Tensor:
    """One of a block's dimensions contiguous."""
    return (
        weight
        if any(s == 1 or n == 1 for s, n in zip(weight.stride()[1:], weight.shape[1:], strict=True))
        else weight.contiguous()
    )


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_order: str = "consecutive",
    y_order: str = "consecutive",
    op: str = "blockdiag_linear",
) -> torch.Tensor:
    """y's block g = x's block g times weight[g] (groups, in, out), + bias; x, y (rows, channels); returns y."""
    bias = None if bias is None else bias.contiguous()
    launch("gemm_blocks", x, weights_of(weight), y, bias, x_order, "", y_order, op=op)
    return y


def gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    y_order: str = "consecutive",
    x_order: str = "consecutive",
    op: str = "blockdiag_linear",
) -> torch.Tensor:
    """dW[g] = (dy's block g)^T (x's block g), of weight's shape (groups, out, in)."""
    groups, out, inner = weight.shape
    tiles = -(-out // 256) * -(-inner // 256) * groups
    shares = max(1, min(len(x) // 1024, CLUSTERS // max(tiles, 1)))
    dw = weight.new_empty(groups, out, inner)
    sums = dw if shares == 1 else weight.new_empty(shares, groups, out, inner, dtype=torch.float32)
    launch("gemm_blocks", dy.t(), x, sums, None, y_order, x_order, "", op=op)
    return dw if shares == 1 else sums.sum(0).to(weight.dtype)


def forward(x, weight, bias, shuffle, out_features):
    y = x.new_empty(*x.shape[:-1], out_features)
    order = "shuffled" if shuffle else "consecutive"
    product(rows_of(x), weight.mT, rows_of(y), bias, x_order=order)
    return y


def backward(grads, outputs, x, weight, bias, shuffle, out_features, *, needs):
    (dy,) = grads
    if dy is None:
        return [None, None, None]
    dy, order = rows_of(dy), "shuffled" if shuffle else "consecutive"
    dx = dw = db = None
    if needs[0]:
        dx = product(dy, weight, x.new_empty(dy.shape[0], x.shape[-1]), y_order=order).view(x.shape)
    if needs[1]:
        dw = gradient(dy, rows_of(x), weight, x_order=order)
    if needs[2]:
        db = dy.sum(0)
    return [dx, dw, db]
