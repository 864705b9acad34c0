"""blockdiag_mlp by compiled kernels. Backends "cuda" and "emulator".

fused       one kernel (csrc/kernels/blockdiag_mlp): half-block b of `gated` (of 2 nblocks) makes the gate of wo's
            block b, half-block nblocks + b its value, and that block reads no others, so the inner width stays in
            registers: 3 KB a row of M2-BERT-80M. Blocks of at most 256 inputs and outputs, all sizes multiples of 8,
            where there are tiles of 256 rows and a block for most of the multiprocessors
two         the GEMM: the gated product of half-blocks, then blockdiag_linear. Of the inner width h reaches memory:
            15 KB a row (x 1.5, h twice 6, y 1.5), where the two layers apart move 39 KB
two layers  where 2 I is no multiple of 2 nblocks, or inputs are padded, one after the other

For a backward each writes gate and value too, 12 KB a row: 15 KB in all where one kernel does it (blocks of at most
192), 27 KB where two do. There dh = dy wo meets both on its way out of the accumulators and becomes dgate, dvalue and h
(gated_mlp's kernels, whose bytes these are); the first layer's gradients are blockdiag_linear's, on both slopes as one
matrix.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.blockdiag_linear import cuda as blockdiag
from tkpy.ops.blockdiag_linear.cuda import rows_of
from tkpy.ops.gated_mlp.cuda import Pair, slopes
from tkpy.ops.gated_mlp.cuda import gated as gated_product
from tkpy.ops.gated_mlp.eager import gated as open_gate

WIDEST, WIDEST_KEPT = 256, 192  # inputs and outputs of a block; where gate and value are kept
#: Tiles of 256 rows and a block, each on two multiprocessors for as long as its inner width asks: two thirds of an
#: H100's clusters. With fewer the GEMM, whose tiles cut the inner width too, is predicted to fill it better.
FEWEST_TILES = 44


def _aligned(t: torch.Tensor) -> torch.Tensor:
    """With contiguous rows on multiples of 16 bytes."""
    pitches = all(stride > 0 and stride % 8 == 0 for stride in t.stride()[:-1])
    fits = pitches and t.stride(-1) == 1 and t.data_ptr() % 16 == 0
    return t if fits else t.clone(memory_format=torch.contiguous_format)


def _fuses(rows: int, nblocks: int, c: int, i: int, o: int, keep: bool) -> bool:
    """c, i and o are a block's."""
    sizes = all(size > 0 and size % 8 == 0 for size in (c, i, o))
    return sizes and max(c, o) <= (WIDEST_KEPT if keep else WIDEST) and -(-rows // 256) * nblocks >= FEWEST_TILES


def _halves(z: torch.Tensor, inner: int) -> Pair:
    """Gate and value, or their slopes, of (rows, 2 inner)."""
    return z[:, :inner], z[:, inner:]


def _halved(rows: torch.Tensor, gated: torch.Tensor, inner: int) -> bool:
    """Whether every block is a gate's or a value's, and no size is padded."""
    nblocks, outer, width = gated.shape
    return 2 * inner == nblocks * outer and outer % 2 == 0 and rows.shape[-1] == nblocks * width


def _first_layer(rows, gated, inner, activation, *, h, z):
    """h (rows, inner) and z (rows, 2 inner), gate and value as they are before the activation; either may be None."""
    nblocks, outer, width = gated.shape
    weights = gated.reshape(2 * nblocks, outer // 2, width)
    kept = None if z is None else _halves(z, inner)
    gated_product(
        rows, weights[:nblocks], weights[nblocks:], activation, h=h, kept=kept, halves=True, op="blockdiag_mlp"
    )


def _fused(rows, gated, wo, bias, out_features, activation, kept):
    nblocks, outer, width = gated.shape
    y = rows.new_empty(len(rows), out_features)
    bias = None if bias is None else _aligned(bias)
    halves = _aligned(gated.reshape(2 * nblocks, outer // 2, width))
    launch("blockdiag_mlp", _aligned(rows), halves, _aligned(wo), bias, y, *kept, activation, op="blockdiag_mlp")
    return y


def forward(x, gated, wo, bias, inner, out_features, activation, keep):
    lead, rows = x.shape[:-1], rows_of(x)
    nblocks, outer, width = gated.shape
    z = x.new_empty(*lead, 2 * inner if keep else 0)
    if _halved(rows, gated, inner):
        flat = z.view(len(rows), 2 * inner) if keep else None
        whole = out_features == nblocks * wo.shape[1]
        if whole and _fuses(len(rows), nblocks, width, outer // 2, wo.shape[1], keep):
            kept = (None, None) if flat is None else _halves(flat, inner)
            return _fused(rows, gated, wo, bias, out_features, activation, kept).view(*lead, out_features), z
        h = x.new_empty(len(rows), inner)
        _first_layer(rows, gated, inner, activation, h=h, z=flat)
    else:
        both = blockdiag.forward(rows, gated, None, False, 2 * inner)
        gate, value = _halves(both, inner)
        h = open_gate(gate.clone() if keep else gate, value, activation)
        z = both.view(z.shape) if keep else z
    return blockdiag.forward(h, wo, bias, False, out_features).view(*lead, out_features), z


def _again(rows, gated, inner, activation):
    if not _halved(rows, gated, inner):
        return blockdiag.forward(rows, gated, None, False, 2 * inner)
    z = rows.new_empty(len(rows), 2 * inner)
    _first_layer(rows, gated, inner, activation, h=None, z=z)
    return z


def backward(grads, outputs, x, gated, wo, bias, inner, out_features, activation, keep, *, needs):
    dy = grads[0]
    if dy is None:
        return [None] * 4
    dy, rows = rows_of(dy), rows_of(x)
    z = outputs[0].view(len(rows), 2 * inner) if keep else _again(rows, gated, inner, activation)
    dz = torch.empty_like(z) if any(needs[:2]) else None
    h = z.new_empty(len(rows), inner) if needs[2] else None
    if dz is not None or h is not None:
        both = None if dz is None else _halves(dz, inner)
        slopes(dy, wo, _halves(z, inner), activation, dz=both, h=h, op="blockdiag_mlp")
    dx = dgated = None
    if dz is not None:
        wanted = [needs[0], needs[1], False]
        dx, dgated, _ = blockdiag.backward([dz], (), rows, gated, None, False, 2 * inner, needs=wanted)
    dwo = None if h is None else blockdiag.gradient(dy, h, wo)
    return [dx if dx is None else dx.view(x.shape), dgated, dwo, dy.sum(0) if needs[3] else None]
