"""Rows of `merge_state`: two partial attentions joined, as after a shared prefix or a split over devices; the roof is
the memory's.

Peer: the formula as torch.compile fuses it.
"""

from __future__ import annotations

import torch

from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled
from tkpy.bench.spec import Benchmark
from tkpy.registry import Maker


def _parts(maker: Maker, b: int, s: int, h: int, d: int) -> Kwargs:
    kwargs: Kwargs = {f"out{i}": maker.randn(b, s, h, d) for i in (1, 2)}
    return kwargs | {f"lse{i}": maker.randn(b, h, s, dtype=maker.wide) for i in (1, 2)}


def merged(
    out1: torch.Tensor, lse1: torch.Tensor, out2: torch.Tensor, lse2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without parts that saw no key."""
    ahead = (lse1 - lse2).transpose(-1, -2).unsqueeze(-1)
    out = ahead.sigmoid() * out1 + (-ahead).sigmoid() * out2
    return out.to(out1.dtype), torch.logaddexp(lse1, lse2)


MERGE_STATE = OpRows(
    op="merge_state",
    sizes=("b", "s", "h", "d"),
    make=_parts,
    rows=tuple(
        {"b": b, "s": s, "h": h, "d": d} for b, s, h, d in ((1, 16384, 32, 128), (64, 1, 32, 128), (4, 4096, 16, 64))
    ),
    peers=(compiled(merged),),
    unit="GB/s",
    inputs="standard normal, log-sum-exps too",
    what="two partial attentions joined by their log-sum-exps",
    rank=lambda sizes: 110 if sizes["s"] == 16384 else 200,
    small={"b": 1, "s": 128, "h": 2},
    counted=(Counted({"b": 1, "s": 128, "h": 4, "d": 128}), Counted({"b": 1, "s": 96, "h": 5, "d": 64})),
)


def benchmarks() -> list[Benchmark]:
    """The op's rows."""
    return MERGE_STATE.benchmarks()
