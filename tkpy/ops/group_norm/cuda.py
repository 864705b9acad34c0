"""group_norm by the compiled kernels rows_head_norm_*: on an sm_90 GPU, or in the emulator."""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops import rows

RESIDENT, RESIDENT_BACKWARD = 512, 256  # threads of a multiprocessor
MOST_THREADS = 256  # of a head


def _splits(x: torch.Tensor, resident: int, fewest: int) -> int:
    """Teams of each head, so that the GPU is full; none has fewer rows."""
    heads, size = x.shape[-2:]
    wanted = -(-size // rows.ELEMENTS)
    lanes = min(MOST_THREADS, -(-wanted // 32) * 32) if wanted > 32 else 1 << max(wanted - 1, 0).bit_length()
    full = resident * rows.multiprocessors(x) // (lanes * heads)
    return max(1, min(full, x.shape[:-2].numel() // fewest))


def _flat(x: torch.Tensor | None) -> torch.Tensor | None:
    """(rows, H, N), contiguous."""
    return None if x is None else x.contiguous().view(x.shape[:-2].numel(), *x.shape[-2:])


def forward(x, weight, bias, gate, eps):
    y = x.new_empty(x.shape)
    mean, rstd = (x.new_zeros(*x.shape[:-1], 1, dtype=torch.float32) for _ in range(2))
    if x.numel():
        launch(
            "head_norm_forward", _flat(x), rows.parameter(weight, x), rows.parameter(bias, x), _flat(gate), _flat(y),
            mean, rstd, _splits(x, RESIDENT, 1), eps, op="group_norm",
        )  # fmt: skip
    return y, mean, rstd


def backward(grads, outputs, x, weight, bias, gate, eps, *, needs):
    (dy, *_), (mean, rstd) = grads, outputs
    if dy is None or not x.numel():
        return [None, None, None, None]
    dx, dgate = x.new_empty(x.shape), x.new_empty(x.shape) if gate is not None and needs[3] else None
    dweight, dbias = (p.new_empty(p.shape) if wanted else None for p, wanted in ((weight, needs[1]), (bias, needs[2])))
    splits = _splits(x, RESIDENT_BACKWARD, rows.FEWEST_ROWS)
    partial = x.new_empty(2, splits, x.shape[-2:].numel(), dtype=torch.float32)
    launch(
        "head_norm_backward", _flat(x), rows.parameter(weight, x), rows.parameter(bias, x), _flat(gate), mean, rstd,
        _flat(dy), _flat(dx), _flat(dgate), partial, dweight, dbias, op="group_norm",
    )  # fmt: skip
    return [dx, dweight, dbias, dgate]
