"""Rows of `attention_decode`: one new token a sequence over a full paged cache; the roof is the memory's.

Peers: flash-attn 2 and 3 over the same pages, and PyTorch's scaled_dot_product_attention over the same keys in one
piece.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, Sizes, reference
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker, Op


def make(maker: Maker, b: int, sk: int, h: int, hkv: int, d: int, page: int) -> Kwargs:
    """Standard normal q, k and v; the pages in no order."""
    n = -(-sk // page)
    table = torch.randperm(b * n, generator=torch.Generator().manual_seed(0)).view(b, n)
    return {
        "q": maker.randn(b, 1, h, d),
        "k_cache": maker.randn(b * n, page, hkv, d),
        "v_cache": maker.randn(b * n, page, hkv, d),
        "seqlens": torch.full((b,), sk, dtype=torch.int32, device=maker.device),
        "block_table": table.to(maker.device, torch.int32),
    }


def expect(op: Op, kwargs: Kwargs) -> torch.Tensor:
    """The reference one sequence and one key head at a time, as its keys are in float64."""
    q, k, v = (kwargs[name] for name in ("q", "k_cache", "v_cache"))
    group = q.shape[2] // k.shape[2]
    out = q.new_empty((*q.shape[:3], v.shape[-1]), dtype=torch.float64)
    for row in range(q.shape[0]):
        pages = kwargs["block_table"][row].long()
        for head in range(k.shape[2]):
            heads = slice(head * group, (head + 1) * group)
            keys, values = (t[pages, :, head : head + 1].flatten(0, 1)[None] for t in (k, v))
            part = {"q": q[row : row + 1, :, heads], "k_cache": keys, "v_cache": values}
            out[row : row + 1, :, heads] = reference(op, {**part, "seqlens": kwargs["seqlens"][row : row + 1]})
    return out


def _flash(module: str, table: str) -> Callable[[Kwargs], Callable[[], Any]]:
    def build(kwargs: Kwargs) -> Callable[[], Any]:
        function = importlib.import_module(module).flash_attn_with_kvcache
        tensors = [kwargs[name] for name in ("q", "k_cache", "v_cache")]
        options = {"cache_seqlens": kwargs["seqlens"], table: kwargs["block_table"], "causal": True}
        return lambda: function(*tensors, **options)

    return build


def _sdpa(kwargs: Kwargs) -> Callable[[], Any]:
    q = kwargs["q"].transpose(1, 2)
    pages, length = kwargs["block_table"].long(), int(kwargs["seqlens"][0])
    k, v = (kwargs[name][pages].flatten(1, 2)[:, :length].transpose(1, 2) for name in ("k_cache", "v_cache"))
    return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)


def _label(sizes: Sizes) -> str:
    return (
        f"b{sizes['b']} cache {sizes['sk']} heads {sizes['h']}-{sizes['hkv']} hd{sizes['d']} pages of {sizes['page']}"
    )


DECODE = OpRows(
    op="attention_decode",
    sizes=("b", "sk", "h", "hkv", "d", "page"),
    make=make,
    label=_label,
    expect=expect,
    defaults={"page": 256},
    counted=tuple(
        Counted({"b": 4, "sk": sk, "h": h, "hkv": 1, "d": d}, promise)
        for sk, h, d, promise in (
            (4096, 16, 64, Promise()),
            (
                2048,
                4,
                128,
                Promise(flops=None, why="4 heads of a key head fill a quarter of mma's 16 rows: bytes bind"),
            ),
            (2048, 16, 256, Promise()),
        )
    ),
    trained=(),
    rows=tuple(
        {"b": b, "sk": sk, "h": 32, "hkv": hkv, "d": d, "page": page}
        for b, sk, hkv, d, page in (
            (8, 32768, 8, 128, 256),
            (1, 131072, 8, 128, 256),
            (64, 4096, 8, 128, 256),
            (8, 32768, 8, 128, 16),
            (8, 32768, 8, 64, 256),
            (4, 32768, 4, 256, 256),
        )
    ),
    unit="GB/s",
    rank=lambda sizes: 46,
    peers=(
        Peer("flash-attn 3", _flash("flash_attn_interface", "page_table"), needs="flash_attn_interface"),
        Peer("flash-attn 2", _flash("flash_attn", "block_table"), needs="flash_attn"),
        Peer("sdpa in one piece", _sdpa),
    ),
    eager=False,  # it is no peer: it gathers the pages first
    what="softmax(scale q k^T) v over a paged cache",
)


def benchmarks() -> list[Benchmark]:
    """The decoding rows."""
    return DECODE.benchmarks()
