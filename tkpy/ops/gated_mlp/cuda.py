"""gated_mlp by the compiled kernel `gemm`: the gated product, then the GEMM. Backends "cuda" and "emulator".

The gated product is one launch with both accumulators in registers: x is read once, and neither product is written. The
inner activations are, once: y's product needs all of them for each of its tiles, and at C = 4096, I = 14336 the three
products take 2 x 3 C I = 352 MFLOP a row against 57 KB that h costs to write and to read, a tenth of their time on an
H100 (roofs: 989 TFLOP/s, 3.35 TB/s). The backward is linear's on the same kernel; slopes are torch's.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.blockdiag_linear.cuda import rows_of
from tkpy.ops.gated_mlp.eager import gradients
from tkpy.ops.linear import cuda as linear


def gated(
    x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, activation: str, *, halves: bool = False, op: str = "gated_mlp"
) -> torch.Tensor:
    """act(x W1^T) * (x W2^T) for every group: x (rows, channels), w1 and w2 (groups, N, K); (rows, groups N).

    `halves`: groups are half-blocks of x's channels, gates first, then values (csrc/kernels/gemm/gated.cpp).
    """
    w1, w2 = (w if w.stride(-1) == 1 or w.shape[-1] == 1 else w.contiguous() for w in (w1, w2))
    h = x.new_empty(len(x), w1.shape[0] * w1.shape[1])
    launch("gemm_gated", rows_of(x), w1, w2, h, halves, activation, op=op)
    return h


def forward(x, w1, w2, w3, activation):
    h = gated(rows_of(x), w1[None], w2[None], activation)
    return linear.product(h, w3.t()).view(*x.shape[:-1], w3.shape[0])


def backward(grads, outputs, x, w1, w2, w3, activation, *, needs):
    return gradients(linear, grads, x, w1, w2, w3, activation, needs)
