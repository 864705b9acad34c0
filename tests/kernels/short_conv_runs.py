"""Calls of short_conv for the tests of its kernels."""

from __future__ import annotations

import functools

import row_runs

from tkpy.ops.short_conv import cuda

SOURCES = ("short_conv/forward.cu", "short_conv/backward.cu", "rows/norm_backward.cu")  # the last one has rows_norm_sum
run = functools.partial(row_runs.run, "short_conv")
disagreement = functools.partial(row_runs.disagreement, "short_conv")


def runs_of(monkeypatch, tokens: int) -> None:
    """Runs of so many times."""
    monkeypatch.setattr(cuda, "_run", lambda x: tokens)


def short_conv(
    make, batch=2, channels=5, length=19, taps=4, *, layout="times", pitch=None, skew=0, bias=True, states=True,
    silu=True, wide=False,
):  # fmt: skip
    """x in either layout, rows `pitch` apart, its first element `skew` after the start of the memory."""
    rows, columns = (channels, length) if layout == "times" else (length, channels)
    pitch = pitch or columns
    x = make.randn(batch * rows * pitch + skew)[skew:].view(batch, rows, pitch)[..., :columns]
    kwargs = {
        "x": x if layout == "times" else x.transpose(1, 2),
        "weight": make.randn(channels, taps, dtype=make.wide if wide else None),
        "activation": "silu" if silu else None,
        "output_final_state": states,
    }
    if bias:
        kwargs["bias"] = make.randn(channels, dtype=make.wide if wide else None)
    if states:
        kwargs["initial_state"] = make.randn(taps - 1, batch, channels).permute(1, 2, 0)
    return kwargs


def packed(make, channels, taps, bounds, **options):
    """Sequences in one row, each with a state."""
    kwargs = short_conv(make, 1, channels, bounds[-1], taps, states=False, **options)
    state = make.randn(taps - 1, len(bounds) - 1, channels).permute(1, 2, 0)
    return kwargs | {"cu_seqlens": make.ints(*bounds), "initial_state": state, "output_final_state": True}
