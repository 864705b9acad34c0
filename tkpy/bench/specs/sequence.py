"""Rows of `rotary`, `token_shift` and `wkv5`: what a token takes from its position and from those before it.

Peers: plain PyTorch as torch.compile fuses it, flash-attn's rotary embedding and flash-linear-attention's RWKV-6
(RWKV-5 is that with a decay that no token changes), where they are installed. Peers of `rotary` are given the cosines
and sines of every position; ours computes them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled, in_float64
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker

BASE = 10000.0


def _rotary(maker: Maker, b: int, s: int, h: int, d: int) -> Kwargs:
    return {"x": maker.randn(b, s, h, d), "positions": maker.randint(0, max(s, 1), s)}


def _token_shift(maker: Maker, b: int, t: int, c: int, m: int) -> Kwargs:
    return {"x": maker.randn(b, t, c), "mix": maker.uniform(0.0, 1.0, m, c), "last": maker.randn(b, c)}


def _wkv5(maker: Maker, b: int, t: int, h: int, n: int, state: int) -> Kwargs:
    kwargs: Kwargs = {name: maker.randn(b, t, h, n, scale=0.7) for name in "rkv"}
    kwargs |= {"w": maker.uniform(-6.0, 1.0, h, n, dtype=maker.wide), "u": maker.randn(h, n, dtype=maker.wide)}
    if state:
        kwargs |= {"initial_state": maker.randn(b, h, n, n, dtype=maker.wide), "output_final_state": True}
    return kwargs


def _table(kwargs: Kwargs, dtype: torch.dtype) -> list[torch.Tensor]:
    """Cosines and sines of the positions, (S, D/2)."""
    half = kwargs["x"].shape[-1] // 2
    frequency = BASE ** (-torch.arange(half, dtype=torch.float64, device=kwargs["x"].device) / half)
    angle = kwargs["positions"].double()[:, None] * frequency
    return [angle.cos().to(dtype), angle.sin().to(dtype)]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Halves of the channels turned against each other, in float32."""
    left, right = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x.dtype)


def _rotate_compiled(kwargs: Kwargs) -> Callable[[], Any]:
    cos, sin = _table(kwargs, torch.float32)
    return compiled(rotate).build({"x": kwargs["x"], "cos": cos, "sin": sin})


def _rotate_flash(kwargs: Kwargs) -> Callable[[], Any]:
    function = importlib.import_module("flash_attn.layers.rotary").apply_rotary_emb
    x = kwargs["x"]
    cos, sin = _table(kwargs, x.dtype)
    return lambda: function(x, cos, sin)


def shift(x: torch.Tensor, mix: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """A lerp from the token before."""
    return torch.lerp(torch.cat([last[:, None], x[:, :-1]], 1), x, mix[:, None, None])


def _fla(name: str) -> Peer:
    """A function of fla.ops.rwkv6, with the logarithm of the decay at every token."""

    def build(kwargs: Kwargs) -> Callable[[], Any]:
        function = getattr(importlib.import_module("fla.ops.rwkv6"), name)
        decay = (-kwargs["w"].exp()).expand(kwargs["r"].shape).contiguous()
        inputs = {key: kwargs.get(key) for key in ("r", "k", "v", "u", "initial_state")}
        options = {"scale": 1.0, "output_final_state": kwargs.get("output_final_state", False)}
        return lambda: function(w=decay, **inputs, **options)

    return Peer(f"fla {name}", build, needs="fla.ops.rwkv6")


_PARTS = "operands in two parts of bf16, pairs of a chunk level by level: bytes bind"
_SEGMENTS = "segments side by side read k and v twice, and states: chosen where a head would be one CTA"
_SWEEPS = "gr first to last, gk and gv last to first, each sweep with its state in registers: 11 tensors move, not 7"

ROTARY = OpRows(
    op="rotary",
    sizes=("b", "s", "h", "d"),
    make=_rotary,
    rows=tuple({"b": b, "s": s, "h": 32, "d": 128} for b, s in ((2, 8192), (1, 131072), (8, 2048))),
    peers=(
        Peer("torch.compile", _rotate_compiled),
        Peer("flash-attn", _rotate_flash, needs="flash_attn.layers.rotary"),
    ),
    unit="GB/s",
    what="rotary position embedding, positions in any order",
    rank=lambda sizes: 110 if sizes["s"] == 8192 else 200,
    small={"b": 1, "s": 128, "h": 2},
    counted=tuple(  # the backward reads no x
        Counted({"b": 1, "s": s, "h": h, "d": d}, backward=None) for s, h, d in ((128, 2, 128), (64, 13, 64))
    ),
)
TOKEN_SHIFT = OpRows(
    op="token_shift",
    sizes=("b", "t", "c", "m"),
    make=_token_shift,
    rows=tuple({"b": b, "t": 4096, "c": c, "m": m} for b, c, m in ((8, 4096, 4), (8, 2560, 4), (8, 4096, 2))),
    peers=(compiled(shift),),
    unit="GB/s",
    inputs="standard normal, mixes uniform from 0 to 1",
    what="RWKV-5's mixes of a token with the one before, all at once",
    rank=lambda sizes: 110 if (sizes["c"], sizes["m"]) == (4096, 4) else 200,
    expect=in_float64,
    small={"b": 1, "t": 64, "c": 128},
    counted=(Counted({"b": 1, "t": 512, "c": 512, "m": 4}),),
)
WKV5 = OpRows(
    op="wkv5",
    sizes=("b", "t", "h", "n", "state"),
    make=_wkv5,
    rows=tuple(
        {"b": b, "t": t, "h": h, "n": 64, "state": state}
        for b, t, h, state in ((8, 4096, 64, 0), (4, 4096, 40, 0), (1, 512, 32, 1), (8, 4096, 32, 0))
    ),
    peers=(_fla("chunk_rwkv6"), _fla("fused_recurrent_rwkv6")),
    inputs="normal of deviation 0.7, raw decays uniform from -6 to 1",
    what="the recurrence of RWKV-5",
    rank=lambda sizes: 110 if sizes["h"] == 64 else 200,
    defaults={"state": 0},
    expect=in_float64,
    small={"b": 1, "t": 64, "h": 2},
    counted=(
        *(
            Counted(
                {"b": 1, "t": 128, "h": 2, "n": n, "state": 0},
                Promise(flops=None, why=_PARTS),
                Promise(flops=None, bytes=1.7, why=_SWEEPS),
            )
            for n in (32, 64, 128)
        ),
        Counted(
            {"b": 1, "t": 1024, "h": 1, "n": 32, "state": 1},
            Promise(flops=None, bytes=None, why=_SEGMENTS),
            Promise(flops=None, bytes=None, why=_SEGMENTS),
        ),
    ),
)


def benchmarks() -> list[Benchmark]:
    """The rows of the three."""
    return [b for rows in (ROTARY, TOKEN_SHIFT, WKV5) for b in rows.benchmarks()]
