"""gated_mlp by torch's GEMMs. On a CPU in pieces of rows whose inner activations stay in its cache, in buffers that are
made once: otherwise every tensor of the inner width is written to memory, and read from it, several times.

The backward is six products, on the gate and the value that were kept, or that it computes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from tkpy.ops.linear import eager as linear
from tkpy.ops.linear.eager import SLOPES

aten = torch.ops.aten

#: z -> act(z), in place.
GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda z: F.silu(z, inplace=True),
    "gelu": aten.gelu_,
    "gelu_tanh": lambda z: aten.gelu_(z, approximate="tanh"),
    "relu": torch.relu_,
}
PIECE_BYTES = 8 << 20  # of gate and value together


def pieces(rows: int, inner: int, like: torch.Tensor) -> range:
    """First rows of the pieces."""
    step = rows
    if like.device.type == "cpu":
        step = max(64, PIECE_BYTES // max(2 * inner * like.element_size(), 1) // 32 * 32)
    return range(0, rows, max(step, 1))


def finite(z: torch.Tensor) -> torch.Tensor:
    """gelu and silu of a product that overflowed to -inf are 0, not NaN."""
    return z.clamp_min(torch.finfo(z.dtype).min) if z.dtype == torch.float16 else z


def gated(gate: torch.Tensor, value: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) * value; the gate may be overwritten."""
    return GATES[activation](finite(gate)).mul_(value)


def slopes(
    dh: torch.Tensor, gate: torch.Tensor, value: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(h, dgate, dvalue) for h = act(gate) * value."""
    gate = finite(gate)
    opened = GATES[activation](gate.clone())
    return opened * value, SLOPES[activation](dh * value, gate), dh * opened


def forward(x, w1, w2, w3, activation, keep):
    lead, inner = x.shape[:-1], len(w1)
    rows = x.reshape(math.prod(lead), x.shape[-1])
    y = x.new_empty(len(rows), w3.shape[0])
    kept = x.new_empty(2, *lead, inner if keep else 0)
    steps = pieces(len(rows), inner, x)
    buffer = x.new_empty(2, min(steps.step, len(rows)), inner)
    for first in steps:
        here = slice(first, first + steps.step)
        gate, value = kept.view(2, len(rows), inner)[:, here] if keep else buffer[:, : len(rows[here])]
        torch.mm(rows[here], w1.t(), out=gate)
        torch.mm(rows[here], w2.t(), out=value)
        opened = buffer[0, : len(gate)].copy_(gate) if keep else gate
        torch.mm(gated(opened, value, activation), w3.t(), out=y[here])
    return y.view(*lead, w3.shape[0]), kept


def backward(grads, outputs, x, w1, w2, w3, activation, keep, *, needs):
    dy = grads[0]
    if dy is None:
        return [None] * 4
    plain = (None, None, None)
    gate, value = outputs[0] if keep else (linear.forward(x, w, *plain) for w in (w1, w2))

    def back(dz, z, w, wanted):
        return linear.backward([dz], (), z, w, *plain, needs=[*wanted, False, False])[:2]

    dh, _ = back(dy, value, w3, (any(needs[:3]), False))
    h, dgate, dvalue = slopes(torch.zeros_like(value) if dh is None else dh, gate, value, activation)
    _, dw3 = back(dy, h, w3, (False, needs[3]))
    dx1, dw1 = back(dgate, x, w1, (needs[0], needs[1]))
    dx2, dw2 = back(dvalue, x, w2, (needs[0], needs[2]))
    return [None if dx1 is None else dx1.add_(dx2), dw1, dw2, dw3]
