"""blockdiag_mlp by the compiled kernel `gemm`: the gated product of half-blocks, then blockdiag_linear.

Backends "cuda" and "emulator". Half-block b of `gated` (of 2 nblocks) makes the gate of wo's block b, half-block
nblocks + b its value: one launch whose tiles hold both accumulators. Of the inner width only h reaches memory: 15 KB a
row of M2-BERT-80M (x 1.5, h twice 6, y 1.5), where the two layers apart move 39 KB. Where 2 I is no multiple of
2 nblocks, or inputs are padded, the two layers go one after the other. The backward computes the first layer again;
both layers' gradients are blockdiag_linear's, slopes are torch's.
"""

from __future__ import annotations

from tkpy.ops.blockdiag_linear import cuda as blockdiag
from tkpy.ops.blockdiag_linear.cuda import rows_of
from tkpy.ops.blockdiag_mlp.eager import gradients
from tkpy.ops.gated_mlp.cuda import gated as gated_product
from tkpy.ops.gated_mlp.eager import gated as open_gate


def forward(x, gated, wo, bias, inner, out_features, activation):
    nblocks, outer, width = gated.shape
    if 2 * inner == nblocks * outer and outer % 2 == 0 and x.shape[-1] == nblocks * width:
        halves = gated.reshape(2 * nblocks, outer // 2, width)
        h = gated_product(
            rows_of(x), halves[:nblocks], halves[nblocks:], activation, halves=True, op="blockdiag_mlp"
        ).view(*x.shape[:-1], inner)
    else:
        gate, value = blockdiag.forward(x, gated, None, False, 2 * inner).chunk(2, -1)
        h = open_gate(gate, value, activation)
    return blockdiag.forward(h, wo, bias, False, out_features)


def backward(grads, outputs, x, gated, wo, bias, inner, out_features, activation, *, needs):
    return gradients(blockdiag, grads, x, gated, wo, bias, inner, out_features, activation, needs)
