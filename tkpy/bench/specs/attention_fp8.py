"""Rows of `attention_fp8`: the grid of `attention`, inputs in e4m3, scales of 1; the roof is that of 8-bit products.

Peer: FlashAttention-3 (package flash_attn_interface), where it is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from tkpy.bench.op_rows import Counted, Kwargs, OpRows, Sizes, reference
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker, Op

TOKENS, HIDDEN = 16384, 2048


def make(maker: Maker, b: int, s: int, h: int, d: int, causal: int) -> Kwargs:
    """Standard normal q, k and v, rounded to e4m3."""
    return {**{name: maker.randn(b, s, h, d) for name in "qkv"}, "causal": bool(causal)}


def expect(op: Op, kwargs: Kwargs) -> torch.Tensor:
    """The reference one sequence and one head at a time: its score matrix in float64 fits the memory so."""
    q = kwargs["q"]
    out = q.new_empty(q.shape, dtype=torch.float64)
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            part = {name: kwargs[name][row : row + 1, :, head : head + 1] for name in "qkv"}
            out[row : row + 1, :, head : head + 1] = reference(op, {**kwargs, **part})
    return out


def _flash(kwargs: Kwargs) -> Callable[[], Any]:
    function = importlib.import_module("flash_attn_interface").flash_attn_func

    def call() -> torch.Tensor:
        out = function(kwargs["q"], kwargs["k"], kwargs["v"], causal=kwargs["causal"])
        return out[0] if isinstance(out, tuple) else out

    return call


def _label(sizes: Sizes) -> str:
    mask = "causal" if sizes["causal"] else "full"
    return f"hd{sizes['d']} {mask} s{sizes['s']} b{sizes['b']} h{sizes['h']}"


FP8 = OpRows(
    op="attention_fp8",
    sizes=("b", "s", "h", "d", "causal"),
    make=make,
    label=_label,
    expect=expect,
    defaults={"causal": 1},
    dtypes=("float8_e4m3fn",),
    rows=tuple(
        {"b": TOKENS // s, "s": s, "h": HIDDEN // d, "d": d, "causal": causal}
        for d in (128, 64)
        for s in (4096, 16384)
        for causal in (1, 0)
    ),
    counted=tuple(Counted({"b": 1, "s": 256, "h": 2, "d": d, "causal": 0}) for d in (64, 128)),
    trained=(),
    unit="TFLOP/s",
    inputs="standard normal, rounded to e4m3",
    what="softmax(scale q k^T) v of e4m3",
    rank=lambda sizes: 48,
    peers=(Peer("flash-attn 3", _flash, needs="flash_attn_interface"),),
    eager=False,  # it is no peer: it computes in float32
)


def benchmarks() -> list[Benchmark]:
    """The grid."""
    return FP8.benchmarks()
