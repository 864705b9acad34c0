"""Rows of `time_mix_step`: one token of RWKV-5's time mix with its projections, at the sizes of the released models.

Peers: plain PyTorch as torch.compile fuses it, and the six ops that the fused one takes the place of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import tkpy
from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker

PROJECTIONS = ("receptance", "key", "value", "gate")


def _make(maker: Maker, b: int, c: int, h: int, n: int) -> Kwargs:
    kwargs: Kwargs = {name: maker.randn(b, c) for name in ("x", "last")}
    kwargs |= {"mix": maker.uniform(0.0, 1.0, 4, c)}
    kwargs |= {name: maker.randn(h * n, c, scale=0.7 / c**0.5) for name in PROJECTIONS}
    kwargs |= {"w": maker.uniform(-6.0, 1.0, h, n, dtype=maker.wide), "u": maker.randn(h, n, dtype=maker.wide)}
    kwargs |= {"weight": maker.randn(h, n), "bias": maker.randn(h, n)}
    return kwargs | {"initial_state": maker.randn(b, h, n, n, dtype=maker.wide), "eps": 64e-5}


def time_mix(
    x: torch.Tensor,
    last: torch.Tensor,
    mix: torch.Tensor,
    receptance: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gate: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    initial_state: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lerps, torch's GEMMs, and the rest in float32."""
    mixed = (mix[:, None] * x + (1 - mix[:, None]) * last).unbind(0)
    made = [F.linear(a, b) for a, b in zip(mixed, (receptance, key, value, gate), strict=True)]
    r, k, v, g = (t.view(-1, *w.shape).float() for t in made)
    kv = k[..., None] * v[..., None, :]
    y = (r[..., None] * (initial_state + u[..., None] * kv)).sum(-2)
    z = F.group_norm(y.flatten(1), r.shape[1], weight.float().flatten(), bias.float().flatten(), eps).view_as(y)
    return (z * F.silu(g)).to(x.dtype), (-w.exp()).exp()[..., None] * initial_state + kv


def _six_ops(kwargs: Kwargs) -> Callable[[], Any]:
    """token_shift, four products and wkv5_step."""
    weights = [kwargs[name] for name in PROJECTIONS]
    options = {name: kwargs[name] for name in ("weight", "bias", "initial_state", "eps")}

    def call() -> Any:
        mixed = tkpy.token_shift(kwargs["x"][:, None], kwargs["mix"], kwargs["last"])
        r, k, v, g = (tkpy.linear(a[:, 0], b).view(-1, *kwargs["w"].shape) for a, b in zip(mixed, weights, strict=True))
        return tkpy.wkv5_step(r, k, v, kwargs["w"], kwargs["u"], gate=g, **options)

    return call


#: One row fills one of the eight columns of a tensor-core tile; they are not what decoding waits for.
_ROWS = "a tile of the tensor cores has eight rows of the batch, of which one row fills one; bytes bind"

TIME_MIX_STEP = OpRows(
    op="time_mix_step",
    sizes=("b", "c", "h", "n"),
    make=_make,
    rows=tuple({"b": b, "c": c, "h": h, "n": 64} for c, h in ((2048, 32), (4096, 64), (1024, 16)) for b in (1, 8, 16)),
    peers=(compiled(time_mix), Peer("token_shift, linear, wkv5_step", _six_ops)),
    unit="GB/s",
    inputs="standard normal; mixes uniform from 0 to 1, weights of deviation 0.7 / sqrt(c), raw decays from -6 to 1",
    what="one token of RWKV-5's time mix with its projections",
    rank=lambda sizes: 110 if sizes["c"] > 1024 and sizes["b"] < 16 else 200,
    trained=(),
    counted=(
        Counted({"b": 1, "c": 1024, "h": 2, "n": 64}, Promise(flops=8.0, bytes=1.05, why=_ROWS), None),
        Counted({"b": 8, "c": 2048, "h": 2, "n": 32}, Promise(flops=1.05, bytes=1.05), None),
        Counted({"b": 16, "c": 256, "h": 1, "n": 128}, Promise(flops=1.05, bytes=1.05), None),
    ),
)


def benchmarks() -> list[Benchmark]:
    """All rows."""
    return TIME_MIX_STEP.benchmarks()
