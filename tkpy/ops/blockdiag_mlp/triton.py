"""blockdiag_mlp in Triton: gated_mlp's kernel on half-blocks, then blockdiag_linear's; padded blocks as two layers.

forward    half-block b of `gated` (2 nblocks of them) makes the gate of wo's block b, half-block nblocks + b its value
backward   slopes by torch, blockdiag_linear's backward twice; the first layer again where it was not kept
shapes     as in op.py; sizes that nblocks does not divide go through blockdiag_linear and torch
precision  as gated_mlp's; limits and cost too
"""

from __future__ import annotations

from tkpy.ops.blockdiag_linear import triton as blockdiag
from tkpy.ops.blockdiag_mlp.eager import gradients
from tkpy.ops.gated_mlp.eager import gated as open_gate
from tkpy.ops.gated_mlp.triton import gated as gated_product


def forward(x, gated, wo, bias, inner, out_features, activation, keep):
    nblocks, outer, width = gated.shape
    if 2 * inner == nblocks * outer and outer % 2 == 0 and x.shape[-1] == nblocks * width:
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        halves = gated.reshape(2 * nblocks, outer // 2, width)
        z = x.new_empty(len(rows), 2 * inner if keep else 0)
        kept = (z[:, :inner], z[:, inner:]) if keep else None
        h = gated_product(rows, halves[:nblocks], halves[nblocks:], activation, kept, first_value=nblocks)
        h = h.view(*x.shape[:-1], inner)
    else:
        z = blockdiag.forward(x, gated, None, False, 2 * inner)
        gate, value = z.chunk(2, -1)
        h = open_gate(gate.clone() if keep else gate, value, activation)
    y = blockdiag.forward(h, wo, bias, False, out_features)
    return y, z.view(*x.shape[:-1], z.shape[-1]) if keep else x.new_empty(*x.shape[:-1], 0)


def backward(grads, outputs, x, gated, wo, bias, inner, out_features, activation, keep, *, needs):
    return gradients(blockdiag, grads, outputs, x, gated, wo, bias, inner, out_features, activation, keep, needs)


#: Its kernels are built by gated_mlp and blockdiag_linear.
AHEAD_OF_TIME = ()
