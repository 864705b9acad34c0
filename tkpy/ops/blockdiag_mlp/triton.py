"""blockdiag_mlp in Triton: gated_mlp's kernels on half-blocks, then blockdiag_linear's.

forward    half-block b of `gated` (2 nblocks of them) makes the gate of wo's block b, half-block nblocks + b its value;
           where 2 I is not 2 nblocks whole half-blocks, both are blockdiag_linear's, opened by torch
backward   dh, block by block of wo, becomes the slopes, one matrix, and h on its way out of the accumulators; of the
           slopes blockdiag_linear's backward. Gate and value again first where they were not kept
shapes     as in op.py, padded or not
precision  as gated_mlp's; limits and cost too
"""

from __future__ import annotations

from tkpy.ops.blockdiag_linear import triton as blockdiag
from tkpy.ops.blockdiag_linear.triton import rows_of
from tkpy.ops.gated_mlp.eager import gated as open_gate
from tkpy.ops.gated_mlp.triton import Pair, slopes
from tkpy.ops.gated_mlp.triton import gated as gated_product


def _halves(z, inner) -> Pair:
    """Gate and value, or their slopes, of (rows, 2 inner)."""
    return z[:, :inner], z[:, inner:]


def _first_layer(rows, gated, inner, activation, *, h: bool, keep: bool):
    """(h, z): h (rows, inner) and what it is made of, (rows, 2 inner); None where not asked for."""
    nblocks, outer, width = gated.shape
    if 2 * inner != nblocks * outer or outer % 2:
        z = blockdiag.forward(rows, gated, None, False, 2 * inner)
        gate, value = _halves(z, inner)
        return open_gate(gate.clone() if keep else gate, value, activation) if h else None, z if keep else None
    halves = gated.reshape(2 * nblocks, outer // 2, width)
    found, z = rows.new_empty(len(rows), inner) if h else None, rows.new_empty(len(rows), 2 * inner) if keep else None
    kept = _halves(z, inner) if keep else None
    gated_product(rows, halves[:nblocks], halves[nblocks:], activation, h=found, kept=kept, first_value=nblocks)
    return found, z


def forward(x, gated, wo, bias, inner, out_features, activation, keep):
    lead = x.shape[:-1]
    h, z = _first_layer(rows_of(x), gated, inner, activation, h=True, keep=keep)
    y = blockdiag.forward(h, wo, bias, False, out_features).view(*lead, out_features)
    return y, z.view(*lead, 2 * inner) if keep else x.new_empty(*lead, 0)


def backward(grads, outputs, x, gated, wo, bias, inner, out_features, activation, keep, *, needs):
    if grads[0] is None:
        return [None] * 4
    dy, rows = rows_of(grads[0]), rows_of(x)
    if keep:
        z = outputs[0].view(len(rows), 2 * inner)
    else:
        _, z = _first_layer(rows, gated, inner, activation, h=False, keep=True)
    dz = z.new_empty(z.shape) if needs[0] or needs[1] else None
    h = z.new_empty(len(rows), inner) if needs[2] else None
    if dz is not None or h is not None:
        pair = None if dz is None else _halves(dz, inner)
        slopes(dy, wo, _halves(z, inner), activation, dz=pair, h=h)
    dx = dgated = dwo = None
    if dz is not None:
        wanted = [needs[0], needs[1], False]
        dx, dgated, _ = blockdiag.backward([dz], (), rows, gated, None, False, 2 * inner, needs=wanted)
    if h is not None:
        _, dwo, _ = blockdiag.backward([dy], (), h, wo, None, False, out_features, needs=[False, True, False])
    return [dx if dx is None else dx.view(x.shape), dgated, dwo, dy.sum(0) if needs[3] else None]


#: Its kernels are built by gated_mlp and blockdiag_linear.
AHEAD_OF_TIME = ()
