"""short_conv by the compiled kernels short_conv_*: on an sm_90 GPU, or in the emulator.

x goes in as it is where neighbouring samples, or neighbouring channels, lie side by side; others are copied first.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops import rows

CHUNK, BLOCK = 8, 64  # times, as in csrc/kernels/short_conv/params.h
TURN_BYTES = 64  # of channels beside each other that a warp has there
FEWEST = 512  # times of a run: K - 1 more are read, and the backward leaves 4 (K + 1) bytes of shares
WARPS = 128  # wanted for each multiprocessor: eight times those it has at once, so that the last ones do not show


def _near(x: torch.Tensor) -> torch.Tensor:
    """With times, or channels, beside each other."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 or x.stride(1) == 1 else x.contiguous()


def _offsets(cu_seqlens: torch.Tensor | None) -> torch.Tensor | None:
    return None if cu_seqlens is None else cu_seqlens.int().contiguous()


def _run(x: torch.Tensor) -> int:
    """Times of a run: all of them, or fewer where that leaves warps without any."""
    batch, channels, length = x.shape
    turned = x.stride(2) != 1
    together = TURN_BYTES // x.element_size() if turned else max(1, 32 * CHUNK // length)
    warps = batch * -(-channels // together)
    runs = min(-(-WARPS * rows.multiprocessors(x) // warps), -(-length // FEWEST))
    return -(-length // (runs * BLOCK)) * BLOCK


def forward(x, weight, bias, initial_state, cu_seqlens, activation, output_final_state):
    y, carried = x.new_empty(x.shape), weight.shape[1] - 1
    count = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if not x.numel():
        if output_final_state and initial_state is None:
            initial_state = x.new_zeros(count, x.shape[1], carried)
        return y, initial_state if output_final_state else x.new_empty(0)
    x = _near(x)
    final = x.new_empty(count, x.shape[1], carried) if output_final_state else None
    launch(
        "short_conv_forward", x, rows.parameter(weight, x), rows.parameter(bias, x), initial_state,
        _offsets(cu_seqlens), y, final,
        _run(x), activation == "silu", op="short_conv",
    )  # fmt: skip
    return y, x.new_empty(0) if final is None else final


def backward(grads, outputs, x, weight, bias, initial_state, cu_seqlens, activation, output_final_state, *, needs):
    dy, dfinal = grads[0], grads[1] if output_final_state else None
    if dy is None and dfinal is None:
        return [None] * 5
    if not x.numel():
        return [None, None, None, dfinal, None]
    x, dy = _near(x), torch.zeros_like(x, memory_format=torch.contiguous_format) if dy is None else dy
    dy = dy if dy.stride(2) == 1 or dy.shape[2] == 1 else dy.contiguous()
    tokens, (channels, taps) = _run(x), weight.shape
    dx, dinitial = x.new_empty(x.shape), None if initial_state is None else x.new_empty(initial_state.shape)
    dweight, dbias = (
        weight.new_empty(weight.shape) if needs[1] else None,
        bias.new_empty(channels) if needs[2] else None,
    )
    shares: list[torch.Tensor | None] = [None, None]
    if needs[1] or needs[2]:
        count = x.shape[0] * -(-x.shape[2] // tokens)
        shares = [x.new_empty(1, count, n, dtype=torch.float32) for n in (channels * taps, channels)]
    launch(
        "short_conv_backward", x, rows.parameter(weight, x), rows.parameter(bias, x), initial_state,
        _offsets(cu_seqlens), dy,
        dfinal, dx, dinitial, *shares, dweight, dbias, tokens, activation == "silu", op="short_conv",
    )  # fmt: skip
    return [dx, dweight, dbias, dinitial, None]
