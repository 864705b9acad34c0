"""The lists of a BlockMask by a compiled kernel (csrc/kernels/block_lists): no work on the host and no wait for the
device, so that a CUDA graph may hold it; the sizes of the lists are bounds that follow from shapes.
"""

from __future__ import annotations

import torch

from tkpy import machine
from tkpy.arguments import Arguments
from tkpy.errors import Unsupported

BACKENDS = ("cuda", "emulator", "eager")


def serves(check: Arguments, op: str, backend: str | None, device: torch.device) -> bool:
    """Whether the kernel makes the lists: where it can, unless `backend` names another; one that cannot is refused."""
    if backend is not None:
        check.choice("backend", backend, BACKENDS)
    if backend == "eager":
        return False
    reasons = machine.refusals("block_lists", backend or "cuda", device)
    if backend is not None and reasons:
        raise Unsupported(op, {backend: reasons})
    return not reasons


def listed_blocks(
    table: torch.Tensor, seq_q: int, seq_k: int, block: int, most: int, causal: bool
) -> dict[str, torch.Tensor]:
    """The tensors of a BlockMask by name, from float32 scores (the `most` highest of a row) or a bool table (B, H,
    nQ, nK)."""
    batch, heads, n_q, n_k = table.shape
    scored = table.dtype != torch.bool
    tensors = {}
    for suffix, rows, others in (("", n_q, min(most, n_k) if scored else n_k), ("_t", n_k, n_q)):
        partials = 2 if causal else 0  # the diagonal meets at most two blocks of a row or column
        widths = {"full_index": others, "partial_index": partials, "partial_slot": partials}
        for name in ("full_count", "full_index", "partial_count", "partial_index", "partial_slot"):
            shape = (batch, heads, rows, *((widths[name],) if name in widths else ()))
            tensors[name + suffix] = table.new_empty(shape, dtype=torch.int32)
    tensors["masks"] = table.new_empty(2, block, block // 8, dtype=torch.uint8)
    state = table.new_empty(table.shape, dtype=torch.uint8)
    by_queries = ("full_count", "full_index", "partial_count", "partial_index", "partial_slot")
    table = table.detach().float().contiguous() if scored else table.contiguous().view(torch.uint8)
    lists = [tensors[name] for name in (*by_queries, "masks", *(f"{name}_t" for name in by_queries))]
    machine.launch("block_lists", table, *lists, state, seq_q, seq_k, block, most, causal, op="BlockMask")
    return tensors
