"""gated_mlp by the compiled kernel `gemm`: the gated product, then the GEMM. Backends "cuda" and "emulator".

The gated product is one launch with both accumulators in registers: x is read once, and neither product is written but
for a backward. The inner activations are, once: y's product needs all of them for each of its tiles, and at C = 4096,
I = 14336 the three products take 2 x 3 C I = 352 MFLOP a row against 57 KB that h costs to write and to read, a tenth
of their time on an H100 (roofs: 989 TFLOP/s, 3.35 TB/s).

The backward is six products in five launches and nothing else. dh = dy W3 meets the kept gate and value on its way out
of the accumulators, where it becomes dgate, dvalue and h; dx = dgate W1 + dvalue W2 is one product over both.

bytes  in matrices of the inner width (rows x I). The forward writes h and reads it, 2; with a backward to come 2 more,
       the gate and the value. The backward reads those, 2, and writes dgate, dvalue and h, 3; dW3 reads h, 1; dx reads
       both slopes, 2, and dW1 and dW2 do, 2: ten. A slope is summed over I in one product and over rows in others, and
       what is summed does not fit a multiprocessor, so each is written once and read twice. Forming h again where dW3
       reads it moves as much; to keep h as well would save its write, for half as much memory again
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.blockdiag_linear.cuda import rows_of
from tkpy.ops.linear import cuda as linear

Pair = tuple[torch.Tensor, torch.Tensor]


def _along(weight: torch.Tensor) -> torch.Tensor:
    """The last dimension contiguous, of an empty weight too (which `contiguous` returns as it is)."""
    near = weight.stride(-1) == 1 or weight.shape[-1] == 1
    return weight if near else weight.clone(memory_format=torch.contiguous_format)


def gated(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    activation: str,
    *,
    h: torch.Tensor | None,
    kept: Pair | None = None,
    halves: bool = False,
    op: str = "gated_mlp",
) -> None:
    """h = act(x W1^T) * (x W2^T) for every group, and both products to `kept`: x (rows, channels), w1 and w2
    (groups, N, K), the others (rows, groups N), contiguous rows; either may be None.

    `halves`: groups are half-blocks of x's channels, gates first, then values (csrc/kernels/gemm/gated.cpp).
    """
    gate, value = kept or (None, None)
    launch("gemm_gated", rows_of(x), _along(w1), _along(w2), h, gate, value, halves, activation, op=op)


def slopes(
    dy: torch.Tensor,
    weight: torch.Tensor,
    kept: Pair,
    activation: str,
    *,
    dz: Pair | None,
    h: torch.Tensor | None,
    op: str = "gated_mlp",
) -> None:
    """For dh = dy W, a group at a time: dz = (dh value act'(gate), dh act(gate)) and h = act(gate) * value.

    dy (rows, channels), weight (groups, K, N), the others (rows, channels of N); dz or h may be None. Without dz there
    is no product: h alone needs none.
    """
    if dz is None:
        dy, weight = dy[:, :0], weight[:, :0]
    gates = (None, None) if dz is None else dz
    launch("gemm_gated_backward", dy, _along(weight), *kept, *gates, h, activation, op=op)


def forward(x, w1, w2, w3, activation, keep):
    rows, inner = rows_of(x), len(w1)
    h = x.new_empty(len(rows), inner)
    kept = x.new_empty(2, *x.shape[:-1], inner if keep else 0)
    gated(rows, w1[None], w2[None], activation, h=h, kept=_pair(kept, rows) if keep else None)
    return linear.product(h, w3.t()).view(*x.shape[:-1], w3.shape[0]), kept


def _pair(kept: torch.Tensor, rows: torch.Tensor) -> Pair:
    gate, value = kept.view(2, len(rows), kept.shape[-1])
    return gate, value


def backward(grads, outputs, x, w1, w2, w3, activation, keep, *, needs):
    dy = grads[0]
    if dy is None:
        return [None] * 4
    dy, rows = rows_of(dy), rows_of(x)
    kept = _pair(outputs[0] if keep else x.new_empty(2, len(rows), len(w1)), rows)
    if not keep:
        gated(rows, w1[None], w2[None], activation, h=None, kept=kept)
    dz = x.new_empty(2, *kept[0].shape) if any(needs[:3]) else None
    h = torch.empty_like(kept[0]) if needs[3] else None
    slopes(dy, w3[None], kept, activation, dz=None if dz is None else _pair(dz, rows), h=h)
    dx = dw1 = dw2 = None
    if dz is not None and needs[0]:
        dx = x.new_empty(x.shape)
        launch("gemm_pair", dz, _along(w1), _along(w2), dx.view(rows.shape), op="gated_mlp")
    if dz is not None:
        dw1, dw2 = (linear.product(d.t(), rows) if need else None for d, need in zip(dz, needs[1:3], strict=True))
    return [dx, dw1, dw2, None if h is None else linear.product(dy.t(), h)]
