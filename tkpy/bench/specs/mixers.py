"""Rows of `hyena_mixer`: a Hyena layer between its projections, at StripedHyena's and Evo's sizes.

Peer: the ops that the fused one takes the place of, short_conv and modal_conv with the split between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tkpy
from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, in_float64
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker


def _mixer(maker: Maker, b: int, length: int, w: int, s: int, k: int, groups: int) -> Kwargs:
    """Poles of radius 0.3 to 0.995 at any phase; bias, skip and both final states."""
    size = maker.uniform(0.3, 0.995, w, s, dtype=maker.wide)
    return {
        "z": maker.randn(b, length, 3 * w),
        "weight": maker.randn(3 * w, k, scale=0.5),
        "bias": maker.randn(3 * w),
        "poles": torch.polar(size, maker.uniform(0.0, 2 * torch.pi, w, s, dtype=maker.wide)),
        "residues": torch.complex(*(maker.randn(w, s, scale=0.5, dtype=maker.wide) for _ in "ri")),
        "skip": maker.randn(w),
        "groups": groups,
        "output_final_state": True,
    }


def _two_ops(kwargs: Kwargs) -> Callable[[], Any]:
    """short_conv, the split and modal_conv, by the fastest backend of each; y as the next projection reads it."""
    groups = kwargs["groups"]

    def call() -> Any:
        filtered, inputs = tkpy.short_conv(kwargs["z"].mT, kwargs["weight"], kwargs["bias"], output_final_state=True)
        x2, x1, v = (part.flatten(1, 2) for part in filtered.unflatten(1, (groups, 3, -1)).unbind(2))
        y, state = tkpy.modal_conv(
            v, kwargs["poles"], kwargs["residues"], kwargs["skip"], pre_gate=x1, post_gate=x2, output_final_state=True
        )
        return y.mT, inputs, state

    return call


HYENA_MIXER = OpRows(
    op="hyena_mixer",
    sizes=("b", "length", "w", "s", "k", "groups"),
    make=_mixer,
    rows=tuple(
        {"b": b, "length": length, "w": w, "s": 8, "k": 3, "groups": w // 128}
        for b, length, w in ((1, 8192, 4096), (1, 131072, 4096), (8, 2048, 4096), (1, 131072, 256))
    ),
    peers=(Peer("short_conv, modal_conv", _two_ops, differentiable=True),),
    unit="GB/s",
    inputs="standard normal; poles of radius 0.3 to 0.995",
    what="a Hyena layer with modal filters between its projections (StripedHyena, Evo)",
    rank=lambda sizes: 110 if sizes["length"] == 8192 else 200,
    defaults={"k": 3, "groups": 1},
    expect=in_float64,
    small={"w": 16, "length": 256, "groups": 2},
    counted=(
        Counted(
            {"b": 1, "length": 4096, "w": 16, "s": 8, "k": 3, "groups": 2},
            Promise(
                flops=None, why="flops() is the recurrence's; products of 16 samples and pieces of operands take more"
            ),
            Promise(
                flops=None,
                conflicts=9000,
                why="flops() is the recurrence's; products of 16 samples, states both ways, slopes. Conflicts: "
                "short filters that read gradients of later samples meet in banks at ends of rows",
            ),
        ),
    ),
)


def benchmarks() -> list[Benchmark]:
    """The rows of the op."""
    return HYENA_MIXER.benchmarks()
