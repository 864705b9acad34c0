"""Rows of `blockdiag_linear` and `monarch_multiply`: structured matrices at the widths of M2-BERT and of dense layers.

Peers: torch.einsum, torch.matmul by the same matrix written out, which is the layer that they replace, and the eager
forms, which are torch.bmm (cuBLAS's product of batches).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker

AGAIN = "h is computed again: to keep it and to read it would be a third more bytes"
HALVES = "both factors' sums do not fit on a cluster, so that x and dy are read by two launches"


def _blockdiag(maker: Maker, rows: int, blocks: int, o: int, i: int) -> Kwargs:
    return {"x": maker.randn(rows, blocks * i), "weight": maker.randn(blocks, o, i, scale=max(i, 1) ** -0.5)}


def _monarch(maker: Maker, rows: int, size: int) -> Kwargs:
    factors = {name: maker.randn(size, size, size, scale=max(size, 1) ** -0.5) for name in ("w1", "w2")}
    return {"x": maker.randn(rows, size * size), **factors}


def blockdiag(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each block of x by its own matrix."""
    blocks, _, width = weight.shape
    return torch.einsum("rki,koi->rko", x.view(-1, blocks, width), weight).flatten(1)


def monarch(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """Blocks of consecutive channels, then blocks of strided ones, into strided places."""
    middle = torch.einsum("nkp,kqp->nkq", x.view(len(x), *w1.shape[::2]), w1)
    return torch.einsum("nrl,lsr->nsl", middle.reshape(len(x), w2.shape[2], w2.shape[0]), w2).flatten(1)


def _dense(matrix: Callable[[Kwargs], torch.Tensor]) -> Peer:
    """torch.matmul by what `matrix` makes of the inputs, before the clock starts."""

    def build(kwargs: Kwargs) -> Callable[[], Any]:
        weight = matrix(kwargs)
        return lambda: torch.matmul(kwargs["x"], weight)

    return Peer("torch.matmul, dense", build)


def _written_out(kwargs: Kwargs) -> torch.Tensor:
    x, w1, w2 = (kwargs[name] for name in ("x", "w1", "w2"))
    identity = torch.eye(x.shape[-1], dtype=torch.float32, device=x.device)
    return monarch(identity, w1.float(), w2.float()).to(x.dtype)


BLOCKDIAG_LINEAR = OpRows(
    op="blockdiag_linear",
    sizes=("rows", "blocks", "o", "i"),
    make=_blockdiag,
    rows=tuple(
        {"rows": rows, "blocks": blocks, "o": o, "i": i}
        for rows, blocks, o, i in ((65536, 4, 1536, 192), (65536, 4, 192, 768), (16384, 16, 256, 256))
    ),
    peers=(
        Peer("torch.einsum", lambda kwargs: lambda: blockdiag(**kwargs)),
        _dense(lambda kwargs: torch.block_diag(*kwargs["weight"]).T),
    ),
    unit="TFLOP/s",
    inputs="standard normal, weights scaled so that y is too",
    what="a dense layer of which only diagonal blocks are kept",
    rank=lambda sizes: 110 if sizes["o"] == 1536 else 200,
    counted=(Counted({"rows": 256, "blocks": 2, "o": 256, "i": 256}),),
)
MONARCH_MULTIPLY = OpRows(
    op="monarch_multiply",
    sizes=("rows", "size"),
    make=_monarch,
    rows=tuple({"rows": rows, "size": size} for rows, size in ((16384, 64), (65536, 32), (4096, 64))),
    peers=(Peer("torch.einsum", lambda kwargs: lambda: monarch(**kwargs)), _dense(_written_out)),
    unit="TFLOP/s",
    inputs="standard normal, weights scaled so that y is too",
    what="a square Monarch matrix of order 2, of size^2 channels",
    rank=lambda sizes: 110 if sizes["rows"] == 16384 else 200,
    small={"rows": 64, "size": 16},
    counted=(
        Counted({"rows": 512, "size": 32}, backward=Promise(flops=1.25, why=AGAIN)),
        Counted({"rows": 512, "size": 64}, backward=Promise(flops=1.25, bytes=1.85, why=f"{HALVES}; {AGAIN}")),
    ),
)


def benchmarks() -> list[Benchmark]:
    """The rows of both."""
    return [b for rows in (BLOCKDIAG_LINEAR, MONARCH_MULTIPLY) for b in rows.benchmarks()]
