"""Rows of `layer_norm`, `rms_norm` and `group_norm`, at the widths of models; the roof is the memory's.

Peers: torch's own functions, and the formula as torch.compile fuses it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker

ROWS_AND_WIDTHS = ((16384, 4096), (16384, 2048), (65536, 768), (4096, 8192))
EPS = 64e-5  # of RWKV-5's heads


def _rms_norm(maker: Maker, rows: int, width: int, residual: int) -> Kwargs:
    kwargs: Kwargs = {"x": maker.randn(rows, width), "weight": maker.randn(width)}
    return kwargs | ({"residual": maker.randn(rows, width), "return_residual": True} if residual else {})


def _layer_norm(maker: Maker, rows: int, width: int, residual: int) -> Kwargs:
    return {**_rms_norm(maker, rows, width, residual), "bias": maker.randn(width)}


def _group_norm(maker: Maker, rows: int, h: int, n: int) -> Kwargs:
    kwargs: Kwargs = {name: maker.randn(rows, h, n) for name in ("x", "gate")}
    return kwargs | {name: maker.randn(h, n) for name in ("weight", "bias")} | {"eps": EPS}


Normed = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    return_residual: bool = False,
) -> Normed:
    """torch's own, and before it the sum."""
    z = x if residual is None else x + residual
    y = F.layer_norm(z, z.shape[-1:], weight, bias)
    return (y, z) if return_residual else y


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None, return_residual: bool = False
) -> Normed:
    """torch's own, and before it the sum."""
    z = x if residual is None else x + residual
    y = F.rms_norm(z, z.shape[-1:], weight, 1e-6)
    return (y, z) if return_residual else y


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

NORM: dict[str, Any] = {
    **COMMON,
    "sizes": ("rows", "width", "residual"),
    "defaults": {"residual": 0},
    "rows": (
        *({"rows": rows, "width": width} for rows, width in ROWS_AND_WIDTHS),
        {"rows": 16384, "width": 4096, "residual": 1},
    ),
    "label": lambda sizes: f"{sizes['rows']}x{sizes['width']}{' with a residual' if sizes['residual'] else ''}",
    "counted": (
        Counted({"rows": 512, "width": 512}),
        Counted({"rows": 512, "width": 512, "residual": 1}, backward=None),  # reads z, not x and the residual
    ),
}

LAYER_NORM = OpRows(
    **NORM,
    op="layer_norm",
    make=_layer_norm,
    peers=(Peer("F.layer_norm", lambda kwargs: lambda: layer_norm(**kwargs)), compiled(layer_norm)),
    eager=False,  # it is the same kernel
    what="layer normalisation with weight and bias",
)
RMS_NORM = OpRows(
    **NORM,
    op="rms_norm",
    make=_rms_norm,
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
    counted=(Counted({"rows": 512, "h": 8, "n": 64}),),
    what="normalisation of each head of RWKV-5, with weight, bias and the SiLU gate",
)


def benchmarks() -> list[Benchmark]:
    """The rows of the three."""
    return [b for rows in (LAYER_NORM, RMS_NORM, GROUP_NORM) for b in rows.benchmarks()]
