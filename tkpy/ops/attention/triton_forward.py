"""The forward kernels of attention in Triton (Dao 2023, FlashAttention-2, algorithm 1; masks and options as in op.py).

_forward   one program a tile of queries of one head: for each tile of keys it sees, scores, running maximum and sum,
           products with the values. Bands are walked in three stretches, masked only at the two ends; block lists give
           full blocks, then partial ones with their element masks. With SPLITS > 1 (few queries) each of the SPLITS
           programs takes a stretch of the keys and leaves its share, normalised, with its log-sum-exp
_combine   joins the shares: lse = log sum exp(lse_s), out = sum exp(lse_s - lse) out_s
Both end the same way: sink, log-sum-exp, scale and bias.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tkpy.ops.attention.triton_tiles import LOG2E, capped, kv_head_of, listed_pairs, rows, seen_pairs, sequence_of


@triton.jit
def _attend(
    acc, top, total, q, k_ptr, v_ptr, i, start, slot, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
    k_s, k_d, v_s, v_d, MASKED: tl.constexpr, PARTIAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One tile of keys joins the running softmax."""
    j = start + tl.arange(0, BN)
    k = rows(k_ptr, j[None, :], tl.arange(0, BD)[:, None], k_s, k_d, Sk, D)
    scores, _ = capped(tl.dot(q, k, input_precision="ieee"), scale, cap, SOFTCAP)
    if MASKED:
        seen = seen_pairs(i[:, None], j[None, :], Sq, Sk, left, right, LEFT, RIGHT)
        if PARTIAL:
            seen = seen & listed_pairs(i[:, None], j[None, :], slot, masks_ptr, BLOCK)
        scores = tl.where(seen, scores, -float("inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(higher == -float("inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    v = rows(v_ptr, j[:, None], tl.arange(0, BV)[None, :], v_s, v_d, Sk, DV)
    acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    return acc, higher, total * fade + tl.sum(weights, 1)


@triton.jit
def _listed(
    acc, top, total, q, k_ptr, v_ptr, i, full_count, full_index, part_count, part_index, part_slot, masks_ptr,
    Sq, Sk, left, right, scale, cap, D, DV, k_s, k_d, v_s, v_d, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The full blocks of a row of lists, then its partial ones."""
    for n in range(tl.load(full_count) * (BLOCK // BN)):
        start = tl.load(full_index + n // (BLOCK // BN)) * BLOCK + n % (BLOCK // BN) * BN
        acc, top, total = _attend(
            acc, top, total, q, k_ptr, v_ptr, i, start, 0, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
            k_s, k_d, v_s, v_d, True, False, LEFT, RIGHT, SOFTCAP, BLOCK, BN, BD, BV,
        )  # fmt: skip
    for n in range(tl.load(part_count) * (BLOCK // BN)):
        start = tl.load(part_index + n // (BLOCK // BN)) * BLOCK + n % (BLOCK // BN) * BN
        slot = tl.load(part_slot + n // (BLOCK // BN))
        acc, top, total = _attend(
            acc, top, total, q, k_ptr, v_ptr, i, start, slot, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
            k_s, k_d, v_s, v_d, True, True, LEFT, RIGHT, SOFTCAP, BLOCK, BN, BD, BV,
        )  # fmt: skip
    return acc, top, total


@triton.jit
def _banded(
    acc, top, total, q, k_ptr, v_ptr, i, row, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
    k_s, k_d, v_s, v_d, split, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The keys [low, high) that some query of the tile sees; every query sees those of [whole_low, whole_high)."""
    first = row + Sk - Sq  # the diagonal of the tile's first and last query
    last = tl.minimum(row + BM, Sq) - 1 + Sk - Sq
    low, high, whole_low, whole_high = 0, Sk, 0, Sk
    if LEFT:
        low = tl.maximum(first - left, 0) // BN * BN
        whole_low = tl.cdiv(tl.maximum(last - left, 0), BN) * BN
    if RIGHT:
        high = tl.minimum(Sk, tl.maximum(last + right + 1, 0))
        whole_high = tl.maximum(tl.minimum(Sk, first + right + 1), 0)
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(tl.maximum(high - low, 0), BN), SPLITS) * BN
        low += split * share
        high = tl.minimum(high, low + share)
    whole_low = tl.minimum(tl.maximum(whole_low, low), tl.maximum(high, low))
    whole_high = tl.minimum(tl.maximum(whole_high // BN * BN, whole_low), tl.maximum(high // BN * BN, whole_low))
    if LEFT:
        for start in range(low, whole_low, BN):
            acc, top, total = _attend(
                acc, top, total, q, k_ptr, v_ptr, i, start, 0, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
                k_s, k_d, v_s, v_d, True, False, LEFT, RIGHT, SOFTCAP, 1, BN, BD, BV,
            )  # fmt: skip
    for start in range(whole_low, whole_high, BN):
        acc, top, total = _attend(
            acc, top, total, q, k_ptr, v_ptr, i, start, 0, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
            k_s, k_d, v_s, v_d, False, False, LEFT, RIGHT, SOFTCAP, 1, BN, BD, BV,
        )  # fmt: skip
    for start in range(whole_high, high, BN):
        acc, top, total = _attend(
            acc, top, total, q, k_ptr, v_ptr, i, start, 0, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
            k_s, k_d, v_s, v_d, True, False, LEFT, RIGHT, SOFTCAP, 1, BN, BD, BV,
        )  # fmt: skip
    return acc, top, total


@triton.jit
def _finish(
    z, lse, i, head, Sq, H, DV, out_ptr, lse_ptr, z_ptr, sinks_ptr, scale_ptr, bias_ptr, out_row, lse_row,
    SINKS: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Normalised z and its log-sum-exp (base 2) to the outputs; out_row: row of (.., H, Dv) of query 0, head 0."""
    if SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2E
        high = tl.maximum(lse, sink)
        base = tl.where(high == -float("inf"), 0.0, high)
        joined = base + tl.log2(tl.exp2(lse - base) + tl.exp2(sink - base))
        z *= tl.exp2(lse - tl.where(joined == -float("inf"), 0.0, joined))[:, None]
        lse = joined
    column = tl.arange(0, BV)[None, :]
    inside = (i < Sq)[:, None] & (column < DV)
    at = ((out_row + i.to(tl.int64)) * H + head)[:, None] * DV + column
    if SCALE or BIAS:
        tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=inside)
    if SCALE:
        z *= 1.0 + tl.load(scale_ptr + head * DV + column, mask=column < DV, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + head * DV + column, mask=column < DV, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + lse_row + i, lse / LOG2E, mask=i < Sq)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, sinks_ptr, map_ptr, scale_ptr, bias_ptr, cu_q_ptr, cu_k_ptr, table_ptr, first_ptr,
    full_count_ptr, full_index_ptr, part_count_ptr, part_index_ptr, part_slot_ptr, masks_ptr,
    out_ptr, lse_ptr, z_ptr, N, B, Sq_all, Sk_all, H, HKV, D, DV, total_q, left, right, scale, cap,
    q_b, q_s, q_h, q_d, k_b, k_s, k_h, k_d, v_b, v_s, v_h, v_d, mask_b, mask_h, most_full, most_part,
    PACKED: tl.constexpr, MAP: tl.constexpr, SINKS: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    batch = (tl.program_id(2) // SPLITS).to(tl.int64)
    split = tl.program_id(2) % SPLITS
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last queries see the most keys: they begin first
    exists, tile, q_first, k_first, Sq, Sk = sequence_of(
        tile, table_ptr, first_ptr, cu_q_ptr, cu_k_ptr, N, Sq_all, Sk_all, PACKED
    )
    if not exists:
        return
    kv_head = kv_head_of(head, map_ptr, H, HKV, MAP).to(tl.int64)
    q_ptr += batch * q_b + q_first * q_s + head.to(tl.int64) * q_h
    k_ptr += batch * k_b + k_first * k_s + kv_head * k_h
    v_ptr += batch * v_b + k_first * v_s + kv_head * v_h
    i = tile * BM + tl.arange(0, BM)
    q = rows(q_ptr, i[:, None], tl.arange(0, BD)[None, :], q_s, q_d, Sq, D)
    acc = tl.zeros([BM, BV], tl.float32)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)

    if BLOCK:
        line = batch * mask_b + head.to(tl.int64) * mask_h + tile * BM // BLOCK
        acc, top, total = _listed(
            acc, top, total, q, k_ptr, v_ptr, i, full_count_ptr + line, full_index_ptr + line * most_full,
            part_count_ptr + line, part_index_ptr + line * most_part, part_slot_ptr + line * most_part, masks_ptr,
            Sq, Sk, left, right, scale, cap, D, DV, k_s, k_d, v_s, v_d, LEFT, RIGHT, SOFTCAP, BLOCK, BN, BD, BV,
        )  # fmt: skip
    else:
        acc, top, total = _banded(
            acc, top, total, q, k_ptr, v_ptr, i, tile * BM, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
            k_s, k_d, v_s, v_d, split, LEFT, RIGHT, SOFTCAP, SPLITS, BM, BN, BD, BV,
        )  # fmt: skip

    z = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    lse = top + tl.log2(total)  # -inf + -inf where no key was seen
    if SPLITS > 1:
        row = (split * B + batch) * Sq
        column = tl.arange(0, BV)[None, :]
        at = ((row + i) * H + head)[:, None] * DV + column
        tl.store(z_ptr + at, z, mask=(i < Sq)[:, None] & (column < DV))
        tl.store(lse_ptr + ((split * B + batch) * H + head) * Sq + i, lse, mask=i < Sq)
    else:
        lse_row = head.to(tl.int64) * total_q + q_first if PACKED else (batch * H + head) * Sq
        out_row = q_first if PACKED else batch * Sq
        _finish(
            z, lse, i, head, Sq, H, DV, out_ptr, lse_ptr, z_ptr, sinks_ptr, scale_ptr, bias_ptr, out_row, lse_row,
            SINKS, SCALE, BIAS, BV,
        )  # fmt: skip


@triton.jit
def _combine(
    share_ptr, share_lse_ptr, sinks_ptr, scale_ptr, bias_ptr, out_ptr, lse_ptr, z_ptr, B, Sq, H, DV,
    SINKS: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.arange(0, BV)[None, :]
    top = tl.full([BM], -float("inf"), tl.float32)
    for s in range(SPLITS):
        at = ((s * B + batch) * H + head) * Sq + i
        top = tl.maximum(top, tl.load(share_lse_ptr + at, mask=i < Sq, other=-float("inf")))
    base = tl.where(top == -float("inf"), 0.0, top)
    z = tl.zeros([BM, BV], tl.float32)
    total = tl.zeros([BM], tl.float32)
    for s in range(SPLITS):
        at = ((s * B + batch) * H + head) * Sq + i
        weight = tl.exp2(tl.load(share_lse_ptr + at, mask=i < Sq, other=-float("inf")) - base)
        at = (((s * B + batch) * Sq + i) * H + head)[:, None] * DV + column
        z += weight[:, None] * tl.load(share_ptr + at, mask=(i < Sq)[:, None] & (column < DV), other=0.0)
        total += weight
    z /= tl.where(total > 0.0, total, 1.0)[:, None]
    _finish(
        z, base + tl.log2(total), i, head, Sq, H, DV, out_ptr, lse_ptr, z_ptr, sinks_ptr, scale_ptr, bias_ptr,
        batch * Sq, (batch * H + head) * Sq, SINKS, SCALE, BIAS, BV,
    )  # fmt: skip
