"""Rows of `attention`: the grid of the FlashAttention-3 paper (16k tokens, hidden size 2048), and decoding.

Peers: PyTorch's scaled_dot_product_attention by its flash and cuDNN kernels, FlashAttention-3 (package
flash_attn_interface), FlashAttention-2 (flash_attn) and FlashAttention-4 (flash_attn.cute), where they are installed.
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

TOKENS, HIDDEN = 16384, 2048
LENGTHS = (4096, 16384, 1024, 8192, 2048, 512)
WIDTHS = (128, 64, 256)
SHORT = {512: "512", 1024: "1k", 2048: "2k", 4096: "4k", 8192: "8k", 16384: "16k"}


def make(maker: Maker, b: int, sq: int, sk: int, h: int, hkv: int, d: int, causal: int) -> Kwargs:
    """Standard normal q, k and v."""
    return {
        "q": maker.randn(b, sq, h, d),
        "k": maker.randn(b, sk, hkv, d),
        "v": maker.randn(b, sk, hkv, d),
        "causal": bool(causal),
    }


def expect(op: Op, kwargs: Kwargs) -> torch.Tensor:
    """The reference one sequence and one key head at a time: its score matrix in float64 fits the memory so."""
    q, k, v = (kwargs[name] for name in "qkv")
    group = q.shape[2] // k.shape[2]
    out = q.new_empty((*q.shape[:3], v.shape[-1]), dtype=torch.float64)
    for row in range(q.shape[0]):
        for head in range(k.shape[2]):
            heads = slice(head * group, (head + 1) * group)
            keys, values = (t[row : row + 1, :, head : head + 1] for t in (k, v))
            part = {**kwargs, "q": q[row : row + 1, :, heads], "k": keys, "v": values}
            out[row : row + 1, :, heads] = reference(op, part)
    return out


def _sdpa(backend: str) -> Callable[[Kwargs], Callable[[], Any]]:
    def build(kwargs: Kwargs) -> Callable[[], Any]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (kwargs[name].transpose(1, 2) for name in "qkv")
        options: dict[str, Any] = {"is_causal": kwargs["causal"] and q.shape[2] > 1}
        if kwargs["causal"] and 1 < q.shape[2] != k.shape[2]:
            raise NotImplementedError("its causal mask is aligned at the top left")
        if k.shape[1] != q.shape[1]:
            options["enable_gqa"] = True

        def call() -> torch.Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

        return call

    return build


def _flash(module: str) -> Callable[[Kwargs], Callable[[], Any]]:
    def build(kwargs: Kwargs) -> Callable[[], Any]:
        function = importlib.import_module(module).flash_attn_func

        def call() -> torch.Tensor:
            out = function(kwargs["q"], kwargs["k"], kwargs["v"], causal=kwargs["causal"])
            return out[0] if isinstance(out, tuple) else out

        return call

    return build


def _label(sizes: Sizes) -> str:
    if sizes["sq"] == 1:
        return f"decode b{sizes['b']} cache {sizes['sk']} heads {sizes['h']}-{sizes['hkv']} hd{sizes['d']}"
    mask = "causal" if sizes["causal"] else "full"
    keys = "" if sizes["sk"] == sizes["sq"] else f" of {sizes['sk']}"
    heads = sizes["h"] if sizes["h"] == sizes["hkv"] else f"{sizes['h']}-{sizes['hkv']}"
    return f"hd{sizes['d']} {mask} s{sizes['sq']}{keys} b{sizes['b']} h{heads}"


def _published(sizes: Sizes, dtype: str) -> tuple[str, ...]:
    in_grid = sizes["sq"] == sizes["sk"] and sizes["b"] * sizes["sq"] == TOKENS and sizes["h"] * sizes["d"] == HIDDEN
    if dtype != "float16" or not in_grid or sizes["h"] != sizes["hkv"] or sizes["sq"] not in SHORT:
        return ()
    mask = "causal" if sizes["causal"] else "full"
    return tuple(f"fa3/fwd/hd{sizes['d']}/{mask}/{SHORT[sizes['sq']]}/{who}" for who in ("FA3", "cuDNN"))


def _grid(d: int, length: int, causal: int) -> dict[str, int]:
    heads = HIDDEN // d
    return {"b": TOKENS // length, "sq": length, "sk": length, "h": heads, "hkv": heads, "d": d, "causal": causal}


def _rank(sizes: Sizes) -> int:
    return 40 + 10 * WIDTHS.index(sizes["d"]) + LENGTHS.index(sizes["sq"])


COMMON: dict[str, Any] = {
    "op": "attention",
    "sizes": ("b", "sq", "sk", "h", "hkv", "d", "causal"),
    "make": make,
    "label": _label,
    "expect": expect,
    "defaults": {"causal": 1},
    "peers": (
        Peer("sdpa cudnn", _sdpa("CUDNN_ATTENTION")),
        Peer("sdpa flash", _sdpa("FLASH_ATTENTION")),
        Peer("flash-attn 3", _flash("flash_attn_interface"), needs="flash_attn_interface"),
        Peer("flash-attn 2", _flash("flash_attn"), needs="flash_attn"),
        Peer("flash-attn 4", _flash("flash_attn.cute"), needs="flash_attn.cute"),
    ),
    "eager": False,  # it is no peer: its score blocks go through memory
    "what": "softmax(scale q k^T) v",
    "backward": 2.5,  # five products for two
}


def _counted(sq: int, sk: int, d: int) -> Counted:
    """Two heads of whole tiles without a mask."""
    sizes = {"b": 1, "sq": sq, "sk": sk, "h": 2, "hkv": 2, "d": d, "causal": 0}
    why = "dQ is summed in memory in fp32 and rounded by a kernel of its own; another one reads out and dout for delta"
    return Counted(sizes, backward=Promise(bytes=2.5, why=why))


ATTENTION = OpRows(
    **COMMON,
    rows=tuple(_grid(d, length, causal) for d in WIDTHS for length in LENGTHS for causal in (1, 0)),
    unit="TFLOP/s",
    rank=lambda sizes: _rank(sizes) if sizes["d"] in WIDTHS and sizes["sq"] in LENGTHS else 100,
    published=_published,
    counted=(
        *(_counted(*sizes) for sizes in ((384, 256, 32), (384, 256, 64), (192, 896, 96), (256, 256, 128))),
        *(_counted(*sizes) for sizes in ((256, 256, 160), (128, 448, 192), (256, 192, 224), (256, 320, 256))),
    ),
    trained=tuple(_grid(d, s, causal) for d in (128, 64) for s in (4096, 16384, 8192) for causal in (1, 0)),
)
DECODE = OpRows(
    **COMMON,
    rows=tuple(
        {"b": b, "sq": 1, "sk": length, "h": 32, "hkv": 8, "d": 128, "causal": 1}
        for b, length in ((8, 32768), (1, 131072), (64, 4096))
    ),
    unit="GB/s",
    rank=lambda sizes: 45,
    trained=(),
)


def benchmarks() -> list[Benchmark]:
    """The grid and the decoding rows."""
    return [*ATTENTION.benchmarks(), *DECODE.benchmarks()]
