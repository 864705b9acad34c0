"""Rows of `layer_norm`, `rms_norm` and `group_norm`, at the widths of models; the roof is the memory's.

Peers: torch's own functions, and the formula as torch.compile fuses it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from tkpy.bench.op_rows import Kwargs, OpRows, compiled
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker

ROWS_AND_WIDTHS = ((16384, 4096), (16384, 2048), (65536, 768), (4096, 8192))
EPS = 64e-5  # of RWKV-5's heads


def _layer_norm(maker: Maker, rows: int, width: int) -> Kwargs:
    return {"x": maker.randn(rows, width), "weight": maker.randn(width), "bias": maker.randn(width)}


def _rms_norm(maker: Maker, rows: int, width: int) -> Kwargs:
    return {"x": maker.randn(rows, width), "weight": maker.randn(width)}


def _group_norm(maker: Maker, rows: int, h: int, n: int) -> Kwargs:
    kwargs: Kwargs = {name: maker.randn(rows, h, n) for name in ("x", "gate")}
    return kwargs | {name: maker.randn(h, n) for name in ("weight", "bias")} | {"eps": EPS}


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """torch's own."""
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """torch's own."""
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def group_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gate: torch.Tensor, eps: float
) -> torch.Tensor:
    """torch's own on rows of H * N channels in H groups, and the gate after it."""
    normal = F.group_norm(x.flatten(1), x.shape[1], weight.flatten(), bias.flatten(), eps)
    return normal.view(x.shape) * F.silu(gate)


def _rank(sizes: Any) -> int:
    return 110 if (sizes["rows"], sizes.get("width", 4096)) in ((16384, 4096), (32768, 4096)) else 200


COMMON: dict[str, Any] = {
    "unit": "GB/s",
    "rank": _rank,
    "small": {"rows": 64, "width": 512, "h": 4},
}

LAYER_NORM = OpRows(
    **COMMON,
    op="layer_norm",
    sizes=("rows", "width"),
    make=_layer_norm,
    rows=tuple({"rows": rows, "width": width} for rows, width in ROWS_AND_WIDTHS),
    peers=(Peer("F.layer_norm", lambda kwargs: lambda: layer_norm(**kwargs)), compiled(layer_norm)),
    eager=False,  # it is the same kernel
    what="layer normalisation with weight and bias",
)
RMS_NORM = OpRows(
    **COMMON,
    op="rms_norm",
    sizes=("rows", "width"),
    make=_rms_norm,
    rows=tuple({"rows": rows, "width": width} for rows, width in ROWS_AND_WIDTHS),
    peers=(Peer("F.rms_norm", lambda kwargs: lambda: rms_norm(**kwargs)), compiled(rms_norm)),
    what="root-mean-square normalisation with a weight",
)
GROUP_NORM = OpRows(
    **COMMON,
    op="group_norm",
    sizes=("rows", "h", "n"),
    make=_group_norm,
    rows=tuple({"rows": rows, "h": h, "n": 64} for rows, h in ((32768, 64), (16384, 40), (4096, 32))),
    peers=(Peer("F.group_norm, silu", lambda kwargs: lambda: group_norm(**kwargs)), compiled(group_norm)),
    what="normalisation of each head of RWKV-5, with weight, bias and the SiLU gate",
)


def benchmarks() -> list[Benchmark]:
    """The rows of the three."""
    return [b for rows in (LAYER_NORM, RMS_NORM, GROUP_NORM) for b in rows.benchmarks()]
