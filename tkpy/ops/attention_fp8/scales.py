"""Scales of blocks of rows: how many there are, where they lie, and how they are made and applied.

Packed, blocks are counted from each sequence's start, so that none spans two, and block i of sequence n has the scale
at cu_seqlens[n] // 128 + n + i. That takes one offset and no sum over sequences, and all sizes follow from shapes:
nothing waits for a device.
"""

from __future__ import annotations

import torch

from tkpy.arguments import INTEGERS, Arguments, sequence_bounds

E4M3 = torch.float8_e4m3fn
BLOCK = 128  # rows that share a scale
LARGEST = 448.0  # of e4m3


def block_count(rows: int, cu_seqlens: torch.Tensor | None) -> int:
    """Scales of a head: of the blocks of its rows; packed, as many as there may be of any lengths."""
    return -(-rows // BLOCK) if cu_seqlens is None else rows // BLOCK + cu_seqlens.shape[0] - 1


def _first_blocks(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Where the scales of each packed sequence begin: the next one's are at least ceil(rows / 128) further."""
    begin = cu_seqlens[:-1].long()
    return begin // BLOCK + torch.arange(len(begin), device=begin.device)


def _block_of_row(rows: int, cu_seqlens: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    row = torch.arange(rows, device=device)
    if cu_seqlens is None:
        return row // BLOCK
    offsets = cu_seqlens.long()
    sequence = torch.searchsorted(offsets[1:], row, right=True).clamp(max=max(len(offsets) - 2, 0))
    return _first_blocks(cu_seqlens)[sequence] + (row - offsets[sequence]) // BLOCK


def quantize_blocks(x: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x as e4m3, and the scales that `attention_fp8` takes: x is about x8 * descale, block by block.

    A scale is the power of two that brings the largest entry of its block of 128 rows of a head into (224, 448]:
    scaling itself rounds nothing, and e4m3 has as many bits everywhere in its range. A block of zeros has scale 1.
    All sizes follow from those of the arguments, and offsets stay on their device.

    Args:
        x: (B, S, H, D), or packed (total, H, D), any float dtype, finite.
        cu_seqlens: int32 or int64 (N + 1,), offsets of N packed sequences: from 0, never decreasing, to total.

    Returns:
        x8: like x, float8_e4m3fn.
        descale: (B, H, ceil(S / 128)), float32; packed (H, total // 128 + N), where block i of sequence n, counted
            from the sequence's start, has the scale at cu_seqlens[n] // 128 + n + i; what no block has is 1.
    """
    check = Arguments("quantize_blocks")
    check.tensor("x", x, "B S H D" if cu_seqlens is None else "total H D")
    check.tensor("cu_seqlens", cu_seqlens, "N+1", dtypes=INTEGERS, optional=True)
    check.same_device()
    if cu_seqlens is not None and cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        sequence_bounds("quantize_blocks", "cu_seqlens", cu_seqlens, len(x))
    rows = x.shape[-3]
    block = _block_of_row(rows, cu_seqlens, x.device)
    peaks = x.abs().amax(-1).float()  # (.., S, H)
    largest = peaks.new_zeros(*x.shape[:-3], block_count(rows, cu_seqlens), x.shape[-2])
    largest = largest.scatter_reduce(-2, block.unsqueeze(-1).expand_as(peaks), peaks, "amax")
    exponent = torch.ceil(torch.log2(largest / LARGEST)).clamp(-126, 127)
    descale = torch.where(largest > 0, torch.exp2(exponent), 1.0)  # (.., blocks, H)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    scaled = wide / descale.index_select(-2, block).unsqueeze(-1)
    return scaled.clamp(-LARGEST, LARGEST).to(E4M3), descale.transpose(-1, -2).contiguous()


def scales_of_blocks(x: torch.Tensor, descale: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
    """(B, H, blocks), or packed (H, blocks): one for a head goes to all its blocks."""
    blocks = block_count(x.shape[-3], cu_seqlens)
    if cu_seqlens is None:
        return descale.expand(-1, -1, blocks)
    if descale.dim() == 2:
        return descale
    sequence = torch.searchsorted(_first_blocks(cu_seqlens), torch.arange(blocks, device=x.device), right=True) - 1
    return descale.squeeze(-1).index_select(0, sequence).T


def dequantized(
    x: torch.Tensor, descale: torch.Tensor, dtype: torch.dtype, cu_seqlens: torch.Tensor | None = None
) -> torch.Tensor:
    """x as `dtype`, scales applied."""
    block = _block_of_row(x.shape[-3], cu_seqlens, x.device)
    scale = scales_of_blocks(x, descale, cu_seqlens).to(dtype).transpose(-1, -2)
    return x.to(dtype) * scale.index_select(-2, block).unsqueeze(-1)
