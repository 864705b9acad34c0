"""blockdiag_mlp by compiled kernels. Backends "cuda" and "emulator".

fused       one kernel (csrc/kernels/blockdiag_mlp): half-block b of `gated` (of 2 nblocks) makes the gate of wo's
            block b, half-block nblocks + b its value, and that block reads no others, so the inner width stays in
            registers: 3 KB a row of M2-BERT-80M. Blocks of at most 256 inputs and outputs, all sizes multiples of 8,
            where there are tiles of 256 rows and a block for most of the multiprocessors
two         the GEMM: the gated product of half-blocks, then blockdiag_linear. Of the inner width h reaches memory:
            15 KB a row (x 1.5, h twice 6, y 1.5), where the two layers apart move 39 KB
two layers  where 2 I is no multiple of 2 nblocks, or inputs are padded, one after the other

The backward computes the first layer again; both layers' gradients are blockdiag_linear's, slopes are torch's.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.blockdiag_linear import cuda as blockdiag
from tkpy.ops.blockdiag_linear.cuda import rows_of
from tkpy.ops.blockdiag_mlp.eager import gradients
from tkpy.ops.gated_mlp.cuda import gated as gated_product
from tkpy.ops.gated_mlp.eager import gated as open_gate

WIDEST = 256  # inputs and outputs of a block
#: Tiles of 256 rows and a block, each on two multiprocessors for as long as its inner width asks: two thirds of an
#: H100's clusters. With fewer the GEMM, whose tiles cut the inner width too, is predicted to fill it better.
FEWEST_TILES = 44


def _aligned(t: torch.Tensor) -> torch.Tensor:
    """With contiguous rows on multiples of 16 bytes."""
    pitches = all(stride > 0 and stride % 8 == 0 for stride in t.stride()[:-1])
    fits = pitches and t.stride(-1) == 1 and t.data_ptr() % 16 == 0
    return t if fits else t.clone(memory_format=torch.contiguous_format)


def _fuses(rows: int, nblocks: int, c: int, i: int, o: int) -> bool:
    """c, i and o are a block's."""
    sizes = all(size > 0 and size % 8 == 0 for size in (c, i, o))
    return sizes and max(c, o) <= WIDEST and -(-rows // 256) * nblocks >= FEWEST_TILES


def forward(x, gated, wo, bias, inner, out_features, activation):
    nblocks, outer, width = gated.shape
    if 2 * inner == nblocks * outer and outer % 2 == 0 and x.shape[-1] == nblocks * width:
        halves = gated.reshape(2 * nblocks, outer // 2, width)
        rows = rows_of(x)
        whole = out_features == nblocks * wo.shape[1]
        if whole and _fuses(len(rows), nblocks, width, outer // 2, wo.shape[1]):
            y = x.new_empty(len(rows), out_features)
            bias = None if bias is None else _aligned(bias)
            launch(
                "blockdiag_mlp", _aligned(rows), _aligned(halves), _aligned(wo), bias, y, activation, op="blockdiag_mlp"
            )
            return y.view(*x.shape[:-1], out_features)
        h = gated_product(rows, halves[:nblocks], halves[nblocks:], activation, halves=True, op="blockdiag_mlp")
        h = h.view(*x.shape[:-1], inner)
    else:
        gate, value = blockdiag.forward(x, gated, None, False, 2 * inner).chunk(2, -1)
        h = open_gate(gate, value, activation)
    return blockdiag.forward(h, wo, bias, False, out_features)


def backward(grads, outputs, x, gated, wo, bias, inner, out_features, activation, *, needs):
    return gradients(blockdiag, grads, x, gated, wo, bias, inner, out_features, activation, needs)
