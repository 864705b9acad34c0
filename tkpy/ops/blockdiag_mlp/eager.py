"""blockdiag_mlp by torch's GEMMs, a GEMM per block; on a CPU in pieces of rows that stay in its cache (gated_mlp).

Inner channels of wo's block b are gate channels [b i, (b + 1) i) and value channels I + the same. The backward is that
of blockdiag_linear twice, on the first layer's output as it was kept, or computed again.
"""

from __future__ import annotations

import torch

from tkpy.ops.blockdiag_linear import eager as blockdiag
from tkpy.ops.gated_mlp.eager import gated as open_gate
from tkpy.ops.gated_mlp.eager import pieces, slopes


def forward(x, gated, wo, bias, inner, out_features, activation, keep):
    lead = x.shape[:-1]
    rows = x.reshape(lead.numel(), x.shape[-1])
    whole, kept = x.new_empty(len(rows), out_features), x.new_empty(*lead, 2 * inner if keep else 0)
    steps = pieces(len(rows), inner, x)
    for first in steps:
        piece = slice(first, first + steps.step)
        z = blockdiag.forward(rows[piece], gated, None, False, 2 * inner)
        if keep:
            kept.view(len(rows), 2 * inner)[piece] = z
        gate, value = z.chunk(2, -1)
        h = open_gate(gate, value, activation)
        y = blockdiag.forward(h, wo, bias, False, out_features)
        if len(steps) == 1:
            return y.view(*lead, out_features), kept
        whole[piece] = y
    return whole.view(*lead, out_features), kept


def backward(grads, outputs, x, gated, wo, bias, inner, out_features, activation, keep, *, needs):
    dy = grads[0]
    if dy is None:
        return [None] * 4
    z = outputs[0] if keep else blockdiag.forward(x, gated, None, False, 2 * inner)
    gate, value = z.chunk(2, -1)
    second = (wo, bias, False, out_features)
    dh, _, db = blockdiag.backward([dy], (), value, *second, needs=[any(needs[:2]), False, needs[3]])
    h, dgate, dvalue = slopes(torch.zeros_like(value) if dh is None else dh, gate, value, activation)
    _, dwo, _ = blockdiag.backward([dy], (), h, *second, needs=[False, needs[2], False])
    dz = torch.cat((dgate, dvalue), -1)
    dx, dgated, _ = blockdiag.backward([dz], (), x, gated, None, False, 2 * inner, needs=[needs[0], needs[1], False])
    return [dx, dgated, dwo, db]
