"""What the Triton kernels of attention share: where a tile lies, which pairs it sees, and its scores."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sequence_of(tile, table_ptr, first_ptr, cu_q_ptr, cu_k_ptr, N, Sq, Sk, PACKED: tl.constexpr):
    """(exists, number of the tile in its sequence, first row of q, first row of k, Sq, Sk); dense: one sequence."""
    if PACKED:
        n = tl.load(table_ptr + tile)
        exists = n < N
        n = tl.minimum(n, N - 1)
        q_first = tl.load(cu_q_ptr + n).to(tl.int64)
        k_first = tl.load(cu_k_ptr + n).to(tl.int64)
        length_q = (tl.load(cu_q_ptr + n + 1) - q_first).to(tl.int32)
        length_k = (tl.load(cu_k_ptr + n + 1) - k_first).to(tl.int32)
        return exists, (tile - tl.load(first_ptr + n)).to(tl.int32), q_first, k_first, length_q, length_k
    else:
        none = tile.to(tl.int64) * 0
        return tile >= 0, tile, none, none, Sq, Sk


@triton.jit
def kv_head_of(head, map_ptr, H, HKV, MAP: tl.constexpr):
    if MAP:
        return tl.minimum(tl.maximum(tl.load(map_ptr + head), 0), HKV - 1)
    else:
        return head // (H // HKV)


@triton.jit
def seen_pairs(i, j, Sq, Sk, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Queries i and keys j, of shapes that broadcast together."""
    seen = (i < Sq) & (j < Sk)
    distance = j - i - (Sk - Sq)
    if LEFT:
        seen = seen & (distance >= -left)
    if RIGHT:
        seen = seen & (distance <= right)
    return seen


@triton.jit
def listed_pairs(i, j, slot, masks_ptr, BLOCK: tl.constexpr):
    """The element mask of a partial block: bit j % 8 of byte j // 8 of row i (see block_mask.py)."""
    byte = (slot.to(tl.int64) * BLOCK + i % BLOCK) * (BLOCK // 8) + j % BLOCK // 8
    return ((tl.load(masks_ptr + byte).to(tl.int32) >> (j % 8)) & 1) != 0


@triton.jit
def capped(products, scale, cap, SOFTCAP: tl.constexpr):
    """(scores in units of log 2, their derivative by scale * products in units of log 2)."""
    if SOFTCAP:
        x = products * (scale / cap)
        small = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
        size = (1.0 - small) / (1.0 + small)
        bounded = tl.where(x < 0, -size, size)
        return bounded * (cap * LOG2E), 1.0 - bounded * bounded
    else:
        return products * (scale * LOG2E), tl.full([1, 1], 1.0, tl.float32)


@triton.jit
def rows(pointer, row, column, row_stride, column_stride, height, width):
    """A tile of a matrix, zeros outside of height x width; row (R, 1), column (1, C) or the other way round."""
    at = pointer + row.to(tl.int64) * row_stride + column * column_stride
    return tl.load(at, mask=(row < height) & (column < width), other=0.0)
