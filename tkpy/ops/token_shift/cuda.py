"""token_shift by the compiled kernels rows_shift_*: on an sm_90 GPU, or in the emulator."""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops import rows

FORWARD, BACKWARD = (4, 32), (8, 128)  # fewest and most tokens of a run: one more is read for each, and it has a share
RESIDENT = 512  # threads of a multiprocessor
THREADS, LANES = 128, 32  # of a CTA: it has up to 32 chunks of 16 bytes side by side, of as many runs as fit


def _run(x: torch.Tensor, bounds: tuple[int, int]) -> int:
    """Tokens of a thread: few enough that every thread of the GPU has some, a multiple of 4."""
    chunks = x.shape[0] * x.shape[1] * -(-x.shape[2] * x.element_size() // 16)
    return max(bounds[0], min(bounds[1], chunks // (RESIDENT * rows.multiprocessors(x)) // 4 * 4))


def _near(x: torch.Tensor | None) -> torch.Tensor | None:
    """With contiguous channels."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _mix(mix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    found = rows.parameter(mix, x)
    assert found is not None
    return found


def forward(x, mix, last):
    y = x.new_empty(mix.shape[0], *x.shape)
    if y.numel():
        launch("shift_forward", _near(x), _mix(mix, x), _near(last), y, _run(x, FORWARD), op="token_shift")
    return y


def backward(grads, outputs, x, mix, last, *, needs):
    (dy,) = grads
    if dy is None or not x.numel():
        return [None, None, None]
    tokens = _run(x, BACKWARD)
    dx, dmix = x.new_empty(x.shape), mix.new_empty(mix.shape) if needs[1] else None
    dlast = None if last is None else last.new_empty(last.shape)
    runs, chunks = x.shape[0] * -(-x.shape[1] // tokens), -(-x.shape[2] * x.element_size() // 16)
    lanes = min(LANES, 1 << (chunks - 1).bit_length())
    partial = x.new_empty(1, -(-runs * lanes // THREADS), mix.numel(), dtype=torch.float32)
    launch(
        "shift_backward", _near(x), _mix(mix, x), _near(last), dy.contiguous(), dx, dlast, partial, dmix, tokens,
        op="token_shift",
    )  # fmt: skip
    return [dx, dmix, dlast]
