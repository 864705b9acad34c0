"""Rows of the gated MLPs: `gated_mlp` at the sizes of models, `blockdiag_mlp` at those of M2-BERT.

Peers: PyTorch's products and element-wise kernels one after the other, the same as torch.compile fuses them.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled
from tkpy.bench.spec import Benchmark, Peer
from tkpy.bench.specs.structured import blockdiag
from tkpy.registry import Maker


def _dense(maker: Maker, rows: int, width: int, inner: int) -> Kwargs:
    w1, w2 = (maker.randn(inner, width, scale=max(width, 1) ** -0.5) for _ in range(2))
    return {
        "x": maker.randn(rows, width),
        "w1": w1,
        "w2": w2,
        "w3": maker.randn(width, inner, scale=max(inner, 1) ** -0.5),
    }


def _blocks(maker: Maker, rows: int, blocks: int, width: int, inner: int) -> Kwargs:
    """Width and inner are those of a block."""
    return {
        "x": maker.randn(rows, blocks * width),
        "gated": maker.randn(blocks, 2 * inner, width, scale=max(width, 1) ** -0.5),
        "wo": maker.randn(blocks, width, inner, scale=max(inner, 1) ** -0.5),
        "bias": maker.randn(blocks * width),
    }


def dense(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor) -> torch.Tensor:
    """SwiGLU, written as models write it."""
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w2), w3)


def blocks(x: torch.Tensor, gated: torch.Tensor, wo: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Two block-diagonal layers and the gate between them."""
    gate, value = blockdiag(x, gated).chunk(2, -1)
    return blockdiag(F.gelu(gate) * value, wo) + bias


DENSE = Promise(bytes=1.7, why="h is written and read once")
BLOCKS = Promise(bytes=1.7, why="h is written and read once")
KEPT = Promise(
    bytes=2.5,
    why="of the inner width five matrices are read or written with dh (gate and value, both slopes and h) and five read"
    " after it (h for W3's gradient, both slopes for x's and for their weights'), of which none is an operand; x and dy"
    " are read twice. A slope is summed over rows in one product and over the inner width in another, so it is written",
)
GATED_MLP = OpRows(
    op="gated_mlp",
    sizes=("rows", "width", "inner"),
    make=_dense,
    rows=tuple(
        {"rows": rows, "width": width, "inner": inner}
        for rows, width, inner in ((16384, 4096, 10928), (16384, 4096, 14336), (8192, 2048, 5504))
    ),
    peers=(Peer("cuBLAS + torch", lambda kwargs: lambda: dense(**kwargs)), compiled(dense)),
    unit="TFLOP/s",
    inputs="standard normal, weights scaled so that every product is too",
    what="SwiGLU: act(x W1^T) * (x W2^T), and then W3",
    rank=lambda sizes: 110 if sizes["inner"] == 14336 else 200,
    counted=(Counted({"rows": 256, "width": 256, "inner": 512}, DENSE, KEPT),),
)
BLOCKDIAG_MLP = OpRows(
    op="blockdiag_mlp",
    sizes=("rows", "blocks", "width", "inner"),
    make=_blocks,
    rows=tuple(
        {"rows": rows, "blocks": 4, "width": width, "inner": 4 * width}
        for rows, width in ((65536, 192), (65536, 240), (16384, 448))
    ),
    peers=(Peer("torch.einsum", lambda kwargs: lambda: blocks(**kwargs)), compiled(blocks)),
    unit="TFLOP/s",
    inputs="standard normal, weights scaled so that every product is too",
    what="the block-diagonal GEGLU of M2-BERT: 80M, 110M and 341M",
    rank=lambda sizes: 110 if sizes["width"] == 192 else 200,
    counted=(
        Counted({"rows": 256, "blocks": 2, "width": 256, "inner": 256}, BLOCKS, KEPT),
        Counted({"rows": 5632, "blocks": 2, "width": 128, "inner": 64}, backward=None),
    ),
)


def benchmarks() -> list[Benchmark]:
    """The rows of both."""
    return [b for rows in (GATED_MLP, BLOCKDIAG_MLP) for b in rows.benchmarks()]
