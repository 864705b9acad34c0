"""Calls of attention_decode for the tests of its kernels, against the op's float64 reference."""

from __future__ import annotations

from functools import partial

import attention_runs
import torch

import tkpy
from tkpy import registry

OP = registry.get("attention_decode")


def inputs(lengths, sq, h, hkv, d, dv=None, *, page=None, dtype=torch.bfloat16, seed=0, **options):
    """Caches in one piece, or in pages in no order, with room for the longest length."""
    make, b = registry.Maker(dtype, seed=seed), len(lengths)
    rows, size, table = b, max(lengths), None
    if page:
        n = -(-size // page)
        rows, size = 2 * b * n, page
        table = torch.randperm(rows, generator=make.generator)[: b * n].view(b, n).int()
    tensors = {
        "q": make.randn(b, sq, h, d),
        "k_cache": make.randn(rows, size, hkv, d),
        "v_cache": make.randn(rows, size, hkv, dv or d),
        "seqlens": torch.tensor(lengths, dtype=torch.int32),
    }
    return {**tensors, "block_table": table, **options}


disagreement = partial(attention_runs.disagreement, op=tkpy.attention_decode)
