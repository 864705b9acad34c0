"""Rows of `linear`: square products, few rows (decoding), little depth, and sizes that divide nothing.

The peer torch.matmul is cuBLAS on a CUDA device.
"""

from __future__ import annotations

from typing import Any

import torch

from tkpy.bench.op_rows import Counted, OpRows, Sizes
from tkpy.bench.spec import Peer
from tkpy.registry import Maker

SQUARE = (8192, 4096, 16384, 2048, 1024, 12288)
#: (N, K) of layers that models have, and the rows that meet them: decoding, small batches, speculation.
LAYERS = ((4096, 4096), (11008, 4096), (4096, 11008))
SKINNY = (1, 16, 64, 128)
TAILS = ((4097, 4095, 4093), (8191, 8193, 1031), (4096, 50280, 768), (16384, 4096, 4104), (1000, 1000, 1000))
DEPTHS = tuple((4096, 4096, k) for k in (64, 256, 1024))  # where the epilogue weighs most

#: The rows that say most come first: they are there if a run is cut off.
FIRST = ((8192,) * 3, (4096,) * 3, (16384,) * 3)


def _sizes(m: int, n: int, k: int) -> dict[str, int]:
    return {"m": m, "n": n, "k": k}


def make(maker: Maker, m: int, n: int, k: int) -> dict[str, Any]:
    """x and W standard normal, W scaled so that y is too."""
    return {"x": maker.randn(m, k), "weight": maker.randn(n, k, scale=max(k, 1) ** -0.5)}


def _published(sizes: Sizes, dtype: str) -> tuple[str, ...]:
    m, n, k = (sizes[name] for name in "mnk")
    if dtype != "bfloat16" or m != n:
        return ()
    known = {
        (4096, 4096): ("gemm/4096/bfloat16/cuBLAS", "gemm/4096/bfloat16/fast.cu", "tk/gemm/4096/stages4"),
        (8192, 8192): ("gemm/8192/bfloat16/cuBLAS", "gemm/8192/bfloat16/fast.cu", "gemm/8192/bfloat16/Triton"),
        (16384, 16384): ("tk/gemm/16384/grouped",),
    }
    if (m, k) in known:
        return known[m, k]
    if m == 4096 and k in (64, 128, 256, 512, 1024):
        return (f"tk/gemm/4096x4096x{k}/persistent", f"tk/gemm/4096x4096x{k}/cuBLAS")
    return ()


def _rank(sizes: Sizes) -> int:
    shape = tuple(sizes[name] for name in "mnk")
    return 10 + FIRST.index(shape) if shape in FIRST else 20 if shape[0] in SKINNY else 30


LINEAR = OpRows(
    op="linear",
    sizes=("m", "n", "k"),
    make=make,
    rows=(
        *(_sizes(n, n, n) for n in SQUARE),
        *(_sizes(m, n, k) for m in SKINNY for n, k in LAYERS),
        *(_sizes(*shape) for shape in (*TAILS, *DEPTHS)),
    ),
    peers=(Peer("torch.matmul", lambda kwargs: lambda: torch.matmul(kwargs["x"], kwargs["weight"].t())),),
    eager=False,  # it is torch.matmul too
    unit="TFLOP/s",
    inputs="standard normal, W scaled by 1/sqrt(K), rounded to the dtype",
    what="x W^T: a dense layer without bias",
    rank=_rank,
    published=_published,
    counted=(Counted(_sizes(256, 512, 256)),),
    trained=(*(_sizes(n, n, n) for n in (8192, 4096)), _sizes(16384, 4096, 4096)),
)

BENCHMARKS = LINEAR.benchmarks()
