"""Rows of `attention` by lists of blocks: a part of the key blocks for each block of queries, chosen at random by head.

Peer: FlexAttention on the same blocks. The row without a mask is what the others are a part of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, Sizes
from tkpy.bench.spec import Benchmark, Peer
from tkpy.bench.specs import attention
from tkpy.ops.attention.block_mask import BlockMask
from tkpy.registry import Maker, Op

LENGTH = 32768
BACKWARD = Promise(bytes=2.5, why="as without a mask: dQ is summed in memory in fp32")


def _make(maker: Maker, b: int, s: int, h: int, d: int, block: int, kept: int) -> Kwargs:
    """`kept` blocks of each row, seen completely."""
    scores = maker.randn(1, h, s // block, s // block)
    q, k, v = (maker.randn(b, s, h, d) for _ in range(3))
    return {"q": q, "k": k, "v": v, "block_mask": BlockMask.topk(scores, kept, s, block=block, causal=False)}


def expect(op: Op, kwargs: Kwargs) -> torch.Tensor:
    """In float64, a head at a time: the listed keys of each block of queries, gathered."""
    q, k, v, mask = (kwargs[name] for name in ("q", "k", "v", "block_mask"))
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            rows, keys, values = (t[b, :, h].double().unflatten(0, (-1, mask.block)) for t in (q, k, v))
            listed = mask.full_index[0, h].long()
            scores = rows @ keys[listed].flatten(1, 2).mT / q.shape[-1] ** 0.5
            out[b, :, h] = (scores.softmax(-1) @ values[listed].flatten(1, 2)).flatten(0, 1)
    return out


def _flex(kwargs: Kwargs) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (kwargs[name].transpose(1, 2) for name in "qkv")
    mask = kwargs["block_mask"].to_flex()
    torch.compiler.reset()
    function = torch.compile(flex_attention, dynamic=False)
    return lambda: function(q, k, v, block_mask=mask).transpose(1, 2)


def _label(sizes: Sizes) -> str:
    n = sizes["s"] // sizes["block"]
    return f"hd{sizes['d']} {sizes['kept']} of {n} blocks of {sizes['block']} s{sizes['s']} b{sizes['b']} h{sizes['h']}"


BLOCKS = OpRows(
    op="attention",
    sizes=("b", "s", "h", "d", "block", "kept"),
    make=_make,
    rows=tuple(
        {"b": 1, "s": LENGTH, "h": 16, "d": 128, "block": block, "kept": kept}
        for block, kept in ((128, 26), (64, 51), (128, 77))  # 90, 90 and 70 % left out
    ),
    label=_label,
    expect=expect,
    eager=False,
    peers=(Peer("FlexAttention, compiled", _flex),),
    unit="TFLOP/s",
    what="attention to a part of the blocks of keys",
    rank=lambda sizes: 47,
    backward=2.5,
    counted=(
        Counted({"b": 1, "s": 512, "h": 2, "d": 128, "block": 128, "kept": 2}, backward=BACKWARD),
        Counted({"b": 1, "s": 512, "h": 2, "d": 64, "block": 64, "kept": 3}, backward=BACKWARD),
        *(
            Counted({"b": 1, "s": 512, "h": 2, "d": d, "block": block, "kept": 2}, backward=BACKWARD)
            for d, block in ((32, 128), (96, 64), (160, 128), (192, 128), (224, 64))
        ),
    ),
)
DENSE = OpRows(
    **attention.COMMON,
    rows=({"b": 1, "sq": LENGTH, "sk": LENGTH, "h": 16, "hkv": 16, "d": 128, "causal": 0},),
    unit="TFLOP/s",
    rank=lambda sizes: 47,
)


def benchmarks() -> list[Benchmark]:
    """The rows by lists, and the one without a mask."""
    return [*BLOCKS.benchmarks(), *DENSE.benchmarks()]
