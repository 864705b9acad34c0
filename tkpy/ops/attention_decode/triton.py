"""attention_decode in Triton: few queries over a cache in pages or in one piece, its keys split to fill the GPU.

shapes     q (B, Sq, H, D), caches (pages, page, Hkv, D | Dv), any strides; lengths, starts and pages stay on the device
_decode    one program a tile of BM rows of one key-value head of one sequence, and a stretch of its keys. Its rows are
           the queries of all heads that read that key-value head, so each key is read once for all of them. For each
           tile of keys that exist for some row: scores, running maximum and sum, products with the values. The
           stretches of a sequence follow from its length: SPLITS equal parts of what its queries see
           SPLITS > 1: each leaves its share, normalised, in float32 with its log-sum-exp; `_combine` of
           tkpy/ops/attention/triton_forward.py joins them and adds the sink. SPLITS = 1: sink and output here
masks      rows of the cache before `starts` and from `seqlens` on are not read: they may hold NaN
precision  products of the inputs' dtype (float32: ieee, no tf32); softmax, sums and shares in float32
limits     D, Dv <= 256; compute capability 8.0 or newer; no backward
cost       keys and values once: bound by memory; shares of SPLITS (Dv + 1) floats a row
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tkpy.ops.attention.triton_forward import _combine
from tkpy.ops.attention.triton_tiles import LOG2E, capped, kv_head_of

FAR = 1 << 30  # further than any key


@triton.jit
def _cached(
    cache_ptr, table_ptr, j, column, low, high, width, page, pages, stride_p, stride_s, stride_d, PAGED: tl.constexpr
):
    """Keys j, low <= j < high, of one head; zeros elsewhere. j (R, 1), column (1, C) or the other way round."""
    exists = (j >= low) & (j < high)
    at = j.to(tl.int64) * stride_s
    if PAGED:
        found = tl.load(table_ptr + j // page, mask=exists, other=0)
        found = tl.minimum(tl.maximum(found, 0), pages - 1).to(tl.int64)
        at = found * stride_p + (j % page).to(tl.int64) * stride_s
    return tl.load(cache_ptr + at + column * stride_d, mask=exists & (column < width), other=0.0)


@triton.jit
def _walk(
    q, k_ptr, v_ptr, table_ptr, i, shift, low, high, Sq, D, DV, page, pages, left, right, scale, cap, k_p, k_s, k_d,
    v_p, v_s, v_d, PAGED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Keys [low, high), tile by tile: (sums of weighted values, maxima, sums of weights) of the queries i."""
    acc = tl.zeros([BM, BV], tl.float32)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    for start in range(low, high, BN):
        j = start + tl.arange(0, BN)
        k = _cached(
            k_ptr, table_ptr, j[None, :], tl.arange(0, BD)[:, None], low, high, D, page, pages, k_p, k_s, k_d, PAGED
        )
        scores, _ = capped(tl.dot(q, k, input_precision="ieee"), scale, cap, SOFTCAP)
        distance = j[None, :] - i[:, None] - shift
        seen = (j < high)[None, :] & (i < Sq)[:, None]
        if LEFT:
            seen = seen & (distance >= -left)
        if RIGHT:
            seen = seen & (distance <= right)
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(top - base)
        v = _cached(
            v_ptr, table_ptr, j[:, None], tl.arange(0, BV)[None, :], low, high, DV, page, pages, v_p, v_s, v_d, PAGED
        )
        acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        top, total = higher, total * fade + tl.sum(weights, 1)
    return acc, top, total


@triton.jit
def _decode(
    q_ptr, k_ptr, v_ptr, seqlens_ptr, table_ptr, starts_ptr, sinks_ptr, map_ptr, out_ptr, lse_ptr, share_ptr, B, Sq, H,
    HKV, GROUPS, D, DV, page, pages, room, table_b, left, right, scale, cap, q_b, q_s, q_h, q_d, k_p, k_s, k_h, k_d,
    v_p, v_s, v_h, v_d, PAGED: tl.constexpr, STARTS: tl.constexpr, SINKS: tl.constexpr, MAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) % GROUPS  # heads [group * members, (group + 1) * members) share a key-value head
    batch = (tl.program_id(0) // GROUPS % B).to(tl.int64)
    row = tl.program_id(0) // GROUPS // B * BM + tl.arange(0, BM)
    split = tl.program_id(1)
    members = H // GROUPS
    i = row // members
    head = group * members + row % members
    kv_head = kv_head_of(group * members, map_ptr, H, HKV, MAP).to(tl.int64)
    length = tl.minimum(tl.load(seqlens_ptr + batch), room)
    begin = 0
    if STARTS:
        begin = tl.maximum(tl.load(starts_ptr + batch), 0)
    shift = length - Sq  # query i stands at key i + shift

    k_ptr += kv_head * k_h
    v_ptr += kv_head * v_h
    table_ptr += batch * table_b
    if not PAGED:
        k_ptr += batch * k_p
        v_ptr += batch * v_p
    line = batch * q_b + i.to(tl.int64) * q_s + head.to(tl.int64) * q_h
    channel = tl.arange(0, BD)[None, :]
    q = tl.load(q_ptr + line[:, None] + channel * q_d, mask=(i < Sq)[:, None] & (channel < D), other=0.0)

    low, high = begin, length  # the keys that some row sees
    if LEFT:
        low = tl.maximum(low, tl.min(i, 0) + shift - left)
    if RIGHT:
        high = tl.minimum(high, tl.minimum(tl.max(i, 0), Sq - 1) + shift + right + 1)
    part = tl.cdiv(tl.cdiv(tl.maximum(high - low, 0), BN), SPLITS) * BN
    low += split * part
    high = tl.minimum(high, low + part)
    acc, top, total = _walk(
        q, k_ptr, v_ptr, table_ptr, i, shift, low, high, Sq, D, DV, page, pages, left, right, scale, cap, k_p, k_s, k_d,
        v_p, v_s, v_d, PAGED, LEFT, RIGHT, SOFTCAP, BM, BN, BD, BV,
    )  # fmt: skip

    z = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    lse = top + tl.log2(total)  # -inf + -inf where no key was seen
    column = tl.arange(0, BV)[None, :]
    inside = (i < Sq)[:, None] & (column < DV)
    if SPLITS > 1:
        at = ((split * B + batch) * Sq + i) * H + head
        tl.store(share_ptr + at[:, None] * DV + column, z, mask=inside)
        tl.store(lse_ptr + ((split * B + batch) * H + head) * Sq + i, lse, mask=i < Sq)
    else:
        if SINKS:
            sink = tl.load(sinks_ptr + head, mask=i < Sq, other=0.0) * LOG2E
            higher = tl.maximum(lse, sink)
            base = tl.where(higher == -float("inf"), 0.0, higher)
            joined = base + tl.log2(tl.exp2(lse - base) + tl.exp2(sink - base))
            z *= tl.exp2(lse - tl.where(joined == -float("inf"), 0.0, joined))[:, None]
            lse = joined
        at = (batch * Sq + i) * H + head
        tl.store(out_ptr + at[:, None] * DV + column, z.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(lse_ptr + (batch * H + head) * Sq + i, lse / LOG2E, mask=i < Sq)


def _power(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def _as(tensor: torch.Tensor | None, dtype: torch.dtype, absent: torch.Tensor) -> torch.Tensor:
    """A pointer; an absent tensor is never read."""
    return absent if tensor is None else tensor.to(dtype).contiguous()


def forward(
    q, k_cache, v_cache, seqlens, block_table, starts, sinks, kv_head_map, scale, left, right, softcap, num_splits
):
    batch, seq_q, heads, width = q.shape
    pages, page, kv_heads, value_width = v_cache.shape
    out = q.new_empty(batch, seq_q, heads, value_width)
    lse = q.new_empty(batch, heads, seq_q, dtype=torch.float32)
    if not lse.numel():
        return out, lse
    groups = kv_heads if kv_head_map is None else heads
    tall = heads // groups * seq_q
    tile = min(64, _power(tall))
    wide = max(_power(width), _power(value_width))
    keys = 32 if wide > 128 or q.dtype == torch.float32 else 64
    units = groups * batch * triton.cdiv(tall, tile)
    room = page if block_table is None else page * block_table.shape[1]
    splits = num_splits or max(1, min(triton.cdiv(room, 256), 512 // units))
    share, share_lse = out, lse
    if splits > 1:
        share, share_lse = (q.new_empty(splits, *t.shape, dtype=torch.float32) for t in (out, lse))
    table = _as(block_table, torch.int32, q)
    sink = _as(sinks, torch.float32, q)
    _decode[(units, splits)](
        q, k_cache, v_cache, _as(seqlens, torch.int32, q), table, _as(starts, torch.int32, q), sink,
        _as(kv_head_map, torch.int32, q), out, share_lse, share, batch, seq_q, heads, kv_heads, groups, width,
        value_width, page, pages, room, 0 if block_table is None else block_table.shape[1], min(left, FAR),
        min(right, FAR), scale, softcap, *q.stride(), *k_cache.stride(), *v_cache.stride(),
        PAGED=block_table is not None, STARTS=starts is not None, SINKS=sinks is not None,
        MAP=kv_head_map is not None, LEFT=left >= 0, RIGHT=right >= 0, SOFTCAP=softcap > 0, SPLITS=splits, BM=tile,
        BN=keys, BD=_power(width), BV=_power(value_width), num_warps=4,
    )  # fmt: skip
    if splits > 1:
        queries = min(16, triton.next_power_of_2(seq_q))
        _combine[(triton.cdiv(seq_q, queries), heads, batch)](
            share, share_lse, sink, q, q, out, lse, q, batch, seq_q, heads, value_width, SINKS=sinks is not None,
            SCALE=False, BIAS=False, SPLITS=splits, BM=queries, BV=_power(value_width), num_warps=4,
        )  # fmt: skip
    return out, lse


_TYPES = {"scale": "fp32", "cap": "fp32", "lse_ptr": "*fp32", "share_ptr": "*fp32", "sinks_ptr": "*fp32"}
_TYPES |= dict.fromkeys(("seqlens_ptr", "table_ptr", "starts_ptr", "map_ptr"), "*i32")
_TYPES |= dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), "*bf16")


def _ahead(**constants: Any) -> tuple[Any, dict[str, str], dict[str, Any]]:
    strides = {f"{t}_{s}": "i64" for t in "qkv" for s in "bpshd"}
    names = [n for n in _decode.arg_names if n not in constants]
    return _decode, {n: (strides | _TYPES).get(n, "i32") for n in names}, constants


_ON = {"STARTS": True, "SINKS": True, "MAP": False, "LEFT": True, "RIGHT": True, "SOFTCAP": False}
_TILES = {"BM": 16, "BN": 64, "BD": 128, "BV": 128}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    _ahead(PAGED=False, SPLITS=8, **_ON, **_TILES),
    _ahead(PAGED=True, SPLITS=1, **(_ON | {"SOFTCAP": True, "MAP": True}), **_TILES),
)
