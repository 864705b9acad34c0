"""Rows of `attention_fp8`: the grid of `attention`, inputs in e4m3, scales of 1; the roof is that of 8-bit products.
The same sequences packed: what offsets on the device cost.

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


def make_packed(maker: Maker, n: int, s: int, h: int, d: int, causal: int) -> Kwargs:
    """n sequences of s tokens, one behind the other."""
    offsets = (torch.arange(n + 1) * s).int().to(maker.device)
    packed = {"cu_seqlens_q": offsets, "max_seqlen_q": s, "max_seqlen_k": s}
    return {**{name: maker.randn(n * s, h, d) for name in "qkv"}, **packed, "causal": bool(causal)}


def expect_packed(op: Op, kwargs: Kwargs) -> torch.Tensor:
    """As the same sequences in a batch."""
    s = kwargs["max_seqlen_q"]
    batch = {name: kwargs[name].unflatten(0, (-1, s)) for name in "qkv"}
    return expect(op, {**batch, "causal": kwargs["causal"]}).flatten(0, 1)


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


def _flash_packed(kwargs: Kwargs) -> Callable[[], Any]:
    function = importlib.import_module("flash_attn_interface").flash_attn_varlen_func
    offsets, longest = kwargs["cu_seqlens_q"], kwargs["max_seqlen_q"]

    def call() -> torch.Tensor:
        q, k, v = (kwargs[name] for name in "qkv")
        out = function(q, k, v, offsets, offsets, longest, longest, causal=kwargs["causal"])
        return out[0] if isinstance(out, tuple) else out

    return call


def _label(sizes: Sizes) -> str:
    mask = "causal" if sizes["causal"] else "full"
    return f"hd{sizes['d']} {mask} s{sizes['s']} b{sizes['b']} h{sizes['h']}"


def _label_packed(sizes: Sizes) -> str:
    return _label({**sizes, "b": sizes["n"]}).replace(" b", " packed ")


COMMON: dict[str, Any] = {
    "op": "attention_fp8",
    "defaults": {"causal": 1},
    "dtypes": ("float8_e4m3fn",),
    "trained": (),
    "unit": "TFLOP/s",
    "inputs": "standard normal, rounded to e4m3",
    "rank": lambda sizes: 48,
    "eager": False,  # it is no peer: it computes in float32
}

FP8 = OpRows(
    **COMMON,
    sizes=("b", "s", "h", "d", "causal"),
    make=make,
    label=_label,
    expect=expect,
    rows=tuple(
        {"b": TOKENS // s, "s": s, "h": HIDDEN // d, "d": d, "causal": causal}
        for d in (128, 64, 256)
        for s in (4096, 16384)
        for causal in (1, 0)
    ),
    counted=tuple(Counted({"b": 1, "s": 256, "h": 2, "d": d, "causal": 0}) for d in range(32, 257, 32)),
    what="softmax(scale q k^T) v of e4m3",
    peers=(Peer("flash-attn 3", _flash, needs="flash_attn_interface"),),
)
PACKED = OpRows(
    **COMMON,
    sizes=("n", "s", "h", "d", "causal"),
    make=make_packed,
    label=_label_packed,
    expect=expect_packed,
    rows=tuple({"n": TOKENS // 4096, "s": 4096, "h": HIDDEN // d, "d": d, "causal": 1} for d in (128, 256)),
    counted=tuple(Counted({"n": 2, "s": 256, "h": 2, "d": d, "causal": 0}) for d in (64, 128, 256)),
    what="softmax(scale q k^T) v of e4m3, packed sequences",
    peers=(Peer("flash-attn 3", _flash_packed, needs="flash_attn_interface"),),
)


def benchmarks() -> list[Benchmark]:
    """The grid, and packed sequences."""
    return [*FP8.benchmarks(), *PACKED.benchmarks()]
