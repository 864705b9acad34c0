"""Rows of `short_conv`, `modal_conv` and `fft_conv`: the convolutions of Hyena models, at their widths and lengths.

Peers: torch's depthwise conv1d and its FFTs, and causal_conv1d and flashfftconv where they are installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled, in_float64
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker


def _short(maker: Maker, b: int, c: int, length: int, k: int, silu: int) -> Kwargs:
    kwargs: Kwargs = {"x": maker.randn(b, c, length), "weight": maker.randn(c, k), "bias": maker.randn(c)}
    return kwargs | {"activation": "silu" if silu else None}


def _modal(maker: Maker, b: int, h: int, s: int, length: int) -> Kwargs:
    """Poles of radius 0.3 to 0.995 at any phase; two gates and the skip."""
    size = maker.uniform(0.3, 0.995, h, s, dtype=maker.wide)
    parts = [maker.randn(h, s, scale=0.5, dtype=maker.wide) for _ in range(2)]
    return {
        **_gated(maker, b, h, length),
        "poles": torch.polar(size, maker.uniform(0.0, 2 * torch.pi, h, s, dtype=maker.wide)),
        "residues": torch.complex(*parts),
    }


def _fft(maker: Maker, b: int, h: int, length: int) -> Kwargs:
    return {**_gated(maker, b, h, length), "k": maker.randn(h, length, dtype=maker.wide)}


def _gated(maker: Maker, b: int, h: int, length: int) -> Kwargs:
    kwargs: Kwargs = {name: maker.randn(b, h, length) for name in ("u", "pre_gate", "post_gate")}
    return kwargs | {"skip": maker.randn(h, dtype=maker.wide)}


def conv1d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str | None) -> torch.Tensor:
    """torch's depthwise convolution, padded at both ends, what lies behind the end cut off."""
    channels, taps = weight.shape
    y = F.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=channels)[..., : x.shape[-1]]
    return F.silu(y) if activation == "silu" else y


def shift_and_add(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str | None) -> torch.Tensor:
    """A product a tap, in float32."""
    taps, length = weight.shape[1], x.shape[-1]
    padded = F.pad(x.float(), (taps - 1, 0))
    y = bias.float()[:, None] + sum(weight[:, j, None].float() * padded[..., j : j + length] for j in range(taps))
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def _causal_conv1d(kwargs: Kwargs) -> Callable[[], Any]:
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn
    return lambda: function(kwargs["x"], kwargs["weight"], kwargs["bias"], activation=kwargs["activation"])


def by_fft(
    u: torch.Tensor, k: torch.Tensor, skip: torch.Tensor, pre_gate: torch.Tensor, post_gate: torch.Tensor
) -> torch.Tensor:
    """Hyena's long convolution: FFTs of twice the length in float32."""
    v, length = (pre_gate * u).float(), u.shape[-1]
    spectrum = torch.fft.rfft(v, 2 * length) * torch.fft.rfft(k, 2 * length)
    y = torch.fft.irfft(spectrum, 2 * length)[..., :length] + skip[:, None] * v
    return (post_gate * y).to(u.dtype)


def by_filter(poles: torch.Tensor, residues: torch.Tensor, **gated: torch.Tensor) -> torch.Tensor:
    """The filter's values, every mode at every lag, and FFTs: StripedHyena's way. Of 2^28 values at a time: all of them
    are more than a GPU holds where the widest model meets its longest context."""
    lags = torch.arange(gated["u"].shape[-1], device=poles.device)
    at_once = max(1, 2**28 // max(1, lags.numel() * poles.shape[1]))
    parts = zip(poles.log().split(at_once), residues.split(at_once), strict=True)
    k = torch.cat([(r[..., None] * (p[..., None] * lags).exp()).real.sum(1) for p, r in parts])
    return by_fft(k=k, **gated)


def _flashfftconv(kwargs: Kwargs) -> Callable[[], Any]:
    u, k, skip, before, after = (kwargs[name] for name in ("u", "k", "skip", "pre_gate", "post_gate"))
    module = importlib.import_module("flashfftconv").FlashFFTConv(2 * u.shape[-1], dtype=u.dtype).to(u.device)
    taps = k.clone()
    taps[:, 0] += skip  # it has no skip: the first tap is one
    return lambda: module(u, taps, before, after)


SHORT_CONV = OpRows(
    op="short_conv",
    sizes=("b", "c", "length", "k", "silu"),
    make=_short,
    rows=tuple(
        {"b": b, "c": c, "length": length, "k": k, "silu": silu}
        for b, c, length, k, silu in ((1, 12288, 8192, 3, 0), (1, 12288, 32768, 3, 0), (8, 4096, 4096, 4, 1))
    ),
    peers=(
        Peer("F.conv1d", lambda kwargs: lambda: conv1d(**kwargs)),
        compiled(shift_and_add),
        Peer("causal_conv1d", _causal_conv1d, needs="causal_conv1d"),
    ),
    unit="GB/s",
    what="causal depthwise convolution of few taps, with a bias",
    rank=lambda sizes: 110 if sizes["length"] == 8192 else 200,
    defaults={"silu": 0},
    small={"c": 32, "length": 256},
    counted=tuple(
        Counted({"b": 1, "c": c, "length": length, "k": k, "silu": silu})
        for c, length, k, silu in ((64, 2048, 3, 0), (32, 1023, 4, 1))
    ),
)
MODAL_CONV = OpRows(
    op="modal_conv",
    sizes=("b", "h", "s", "length"),
    make=_modal,
    rows=tuple(
        {"b": 1, "h": h, "s": 8, "length": length}
        for h, length in ((4096, 8192), (4096, 131072), (256, 131072), (4096, 2048))
    ),
    peers=(Peer("filter and torch.fft", lambda kwargs: lambda: by_filter(**kwargs)),),
    inputs="standard normal; poles of radius 0.3 to 0.995",
    what="gated long convolution whose filters are sums of complex modes (StripedHyena, Evo)",
    rank=lambda sizes: 110 if sizes["length"] == 8192 else 200,
    expect=in_float64,
    small={"h": 16, "length": 256},
    counted=(
        Counted(
            {"b": 1, "h": 2, "s": 8, "length": 4096},
            Promise(
                flops=None, why="flops() is the recurrence's; products of 16 samples and pieces of operands take more"
            ),
            Promise(
                flops=None,
                why="flops() is the recurrence's; products of 16 samples, states both ways, slopes take more",
            ),
        ),
    ),
)


DFT = "products with small DFT matrices, in two terms of bfloat16 each, beside the operations of an FFT"
FFT_PROMISES = (Promise(flops=None, why=DFT), Promise(flops=None, why=DFT))
THROUGH = "long rows that clusters do not take go through memory as complex floats, once there and once back"
LONG_FFT_PROMISES = (
    Promise(flops=None, bytes=5.5, why=f"{DFT}; {THROUGH}"),
    Promise(flops=None, bytes=6.2, why=f"{DFT}; {THROUGH}, u and dy both"),
)
FFT_CONV = OpRows(
    op="fft_conv",
    sizes=("b", "h", "length"),
    make=_fft,
    rows=tuple(
        {"b": b, "h": h, "length": n}
        for b, h, n in (
            (8, 768, 8192),
            (1, 256, 131072),
            (64, 768, 1024),
            (64, 768, 4096),
            (8, 64, 32768),
            (1, 16, 4194304),
        )
    ),
    peers=(
        Peer("torch.fft", lambda kwargs: lambda: by_fft(**kwargs)),
        Peer("flashfftconv", _flashfftconv, needs="flashfftconv"),
    ),
    what="gated causal convolution as long as the sequence (Hyena, M2-BERT)",
    rank=lambda sizes: 110 if sizes["length"] == 8192 else 200,
    expect=in_float64,
    counted=(
        *(
            Counted({"b": b, "h": h, "length": length}, *FFT_PROMISES)
            for b, h, length in ((32, 4, 1024), (16, 2, 4096))
        ),
        Counted({"b": 4, "h": 1, "length": 65536}, *LONG_FFT_PROMISES),
        Counted({"b": 8, "h": 1, "length": 32768}, *FFT_PROMISES),
    ),
)


def benchmarks() -> list[Benchmark]:
    """The rows of the three."""
    return [b for rows in (SHORT_CONV, MODAL_CONV, FFT_CONV) for b in rows.benchmarks()]
