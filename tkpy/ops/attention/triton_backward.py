"""The backward kernels of attention in Triton (Dao 2023, FlashAttention-2, algorithm 2), deterministic: no atomics.

With S the capped, masked scores, dZ = (1 + out_scale) dO, P = exp(S - lse) and delta = rowsum(dZ Z) - dlse:

    dV = P^T dZ       dS = P (dZ V^T - delta) S'       dQ = scale dS K       dK = scale dS^T Q

_delta          one program a tile of queries of one head
_backward_q     one program a tile of queries of one head: walks the keys it sees
_backward_kv    one program a tile of keys of one key-value head: walks its query heads and the queries that see it
"""

from __future__ import annotations

import triton
import triton.language as tl

from tkpy.ops.attention.triton_tiles import LOG2E, capped, kv_head_of, listed_pairs, rows, seen_pairs, sequence_of


@triton.jit
def _scaled(gradient, column, scale_ptr, head, DV, SCALE: tl.constexpr):
    """dZ from dO, in its dtype."""
    if SCALE:
        factor = 1.0 + tl.load(scale_ptr + head * DV + column, mask=column < DV, other=0.0).to(tl.float32)
        return (gradient.to(tl.float32) * factor).to(gradient.dtype)
    else:
        return gradient


@triton.jit
def _delta(
    z_ptr, dout_ptr, dlse_ptr, scale_ptr, delta_ptr, rows_per_head, total, H, DV,
    SCALE: tl.constexpr, DLSE: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """z, dout (total, H, Dv) contiguous; delta and dlse like lse: (batches, H, rows_per_head)."""
    head = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.arange(0, BV)[None, :]
    at = (i * H + head)[:, None] * DV + column
    inside = (i < total)[:, None] & (column < DV)
    dout = tl.load(dout_ptr + at, mask=inside, other=0.0)
    dz = _scaled(dout, column, scale_ptr, head, DV, SCALE).to(tl.float32)
    delta = tl.sum(dz * tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32), 1)
    at = (i // rows_per_head * H + head) * rows_per_head + i % rows_per_head
    if DLSE:
        delta -= tl.load(dlse_ptr + at, mask=i < total, other=0.0)
    tl.store(delta_ptr + at, delta, mask=i < total)


@triton.jit
def _keys(
    dq, q, dz, lse, delta, k_ptr, v_ptr, i, start, slot, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
    k_s, k_d, v_s, v_d, PARTIAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What one tile of keys adds to dQ / scale."""
    j = start + tl.arange(0, BN)
    k = rows(k_ptr, j[:, None], tl.arange(0, BD)[None, :], k_s, k_d, Sk, D)
    scores, slope = capped(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, cap, SOFTCAP)
    seen = seen_pairs(i[:, None], j[None, :], Sq, Sk, left, right, LEFT, RIGHT)
    if PARTIAL:
        seen = seen & listed_pairs(i[:, None], j[None, :], slot, masks_ptr, BLOCK)
    weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
    v = rows(v_ptr, j[None, :], tl.arange(0, BV)[:, None], v_s, v_d, Sk, DV)
    dscores = weights * (tl.dot(dz, v, input_precision="ieee") - delta[:, None]) * slope
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit
def _backward_q(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, map_ptr, scale_ptr, cu_q_ptr, cu_k_ptr, table_ptr, first_ptr,
    full_count_ptr, full_index_ptr, part_count_ptr, part_index_ptr, part_slot_ptr, masks_ptr,
    dq_ptr, N, Sq_all, Sk_all, H, HKV, D, DV, total_q, left, right, scale, cap,
    q_b, q_s, q_h, q_d, k_b, k_s, k_h, k_d, v_b, v_s, v_h, v_d, mask_b, mask_h, most_full, most_part,
    PACKED: tl.constexpr, MAP: tl.constexpr, SCALE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    exists, tile, q_first, k_first, Sq, Sk = sequence_of(
        tl.num_programs(0) - 1 - tl.program_id(0), table_ptr, first_ptr, cu_q_ptr, cu_k_ptr, N, Sq_all, Sk_all, PACKED
    )
    if not exists:
        return
    kv_head = kv_head_of(head, map_ptr, H, HKV, MAP).to(tl.int64)
    k_ptr += batch * k_b + k_first * k_s + kv_head * k_h
    v_ptr += batch * v_b + k_first * v_s + kv_head * v_h
    i = tile * BM + tl.arange(0, BM)
    channel, column = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    row = (q_first if PACKED else batch * Sq) + i.to(tl.int64)
    q = rows(q_ptr + batch * q_b + q_first * q_s + head.to(tl.int64) * q_h, i[:, None], channel, q_s, q_d, Sq, D)
    dout_at = (row * H + head)[:, None] * DV + column
    dz = tl.load(dout_ptr + dout_at, mask=(i < Sq)[:, None] & (column < DV), other=0.0)
    dz = _scaled(dz, column, scale_ptr, head, DV, SCALE)
    at = (head.to(tl.int64) * total_q + q_first if PACKED else (batch * H + head) * Sq) + i
    lse = tl.load(lse_ptr + at, mask=i < Sq, other=float("inf")) * LOG2E
    lse = tl.where(lse == -float("inf"), float("inf"), lse)  # rows without keys have no weights
    delta = tl.load(delta_ptr + at, mask=i < Sq, other=0.0)
    dq = tl.zeros([BM, BD], tl.float32)

    if BLOCK:
        line = batch * mask_b + head.to(tl.int64) * mask_h + tile * BM // BLOCK
        for n in range(tl.load(full_count_ptr + line) * (BLOCK // BN)):
            start = tl.load(full_index_ptr + line * most_full + n // (BLOCK // BN)) * BLOCK + n % (BLOCK // BN) * BN
            dq = _keys(
                dq, q, dz, lse, delta, k_ptr, v_ptr, i, start, 0, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
                k_s, k_d, v_s, v_d, False, LEFT, RIGHT, SOFTCAP, BLOCK, BN, BD, BV,
            )  # fmt: skip
        for n in range(tl.load(part_count_ptr + line) * (BLOCK // BN)):
            entry = line * most_part + n // (BLOCK // BN)
            start = tl.load(part_index_ptr + entry) * BLOCK + n % (BLOCK // BN) * BN
            dq = _keys(
                dq, q, dz, lse, delta, k_ptr, v_ptr, i, start, tl.load(part_slot_ptr + entry), masks_ptr, Sq, Sk,
                left, right, scale, cap, D, DV, k_s, k_d, v_s, v_d, True, LEFT, RIGHT, SOFTCAP, BLOCK, BN, BD, BV,
            )  # fmt: skip
    else:
        low, high = 0, Sk
        if LEFT:
            low = tl.maximum(tile * BM + Sk - Sq - left, 0) // BN * BN
        if RIGHT:
            high = tl.minimum(Sk, tl.minimum(tile * BM + BM, Sq) + Sk - Sq + right)
        for start in range(low, high, BN):
            dq = _keys(
                dq, q, dz, lse, delta, k_ptr, v_ptr, i, start, 0, masks_ptr, Sq, Sk, left, right, scale, cap, D, DV,
                k_s, k_d, v_s, v_d, False, LEFT, RIGHT, SOFTCAP, 1, BN, BD, BV,
            )  # fmt: skip
    at = (row * H + head)[:, None] * D + channel
    tl.store(dq_ptr + at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=(i < Sq)[:, None] & (channel < D))


@triton.jit
def _queries(
    dk, dv, k, v, q_ptr, dout_ptr, lse_ptr, delta_ptr, scale_ptr, j, start, slot, masks_ptr, head, H, Sq, Sk,
    left, right, scale, cap, D, DV, q_s, q_d, PARTIAL: tl.constexpr, SCALE: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr,
):  # fmt: skip
    """What one tile of queries adds to dK / scale and to dV. Products are (keys, queries)."""
    i = start + tl.arange(0, BM)
    column = tl.arange(0, BV)[None, :]
    q = rows(q_ptr, i[:, None], tl.arange(0, BD)[None, :], q_s, q_d, Sq, D)
    dz = rows(dout_ptr, i[:, None], column, H * DV, 1, Sq, DV)
    dz = _scaled(dz, column, scale_ptr, head, DV, SCALE)
    lse = tl.load(lse_ptr + i, mask=i < Sq, other=float("inf")) * LOG2E
    lse = tl.where(lse == -float("inf"), float("inf"), lse)
    delta = tl.load(delta_ptr + i, mask=i < Sq, other=0.0)
    scores, slope = capped(tl.dot(k, tl.trans(q), input_precision="ieee"), scale, cap, SOFTCAP)
    seen = seen_pairs(i[None, :], j[:, None], Sq, Sk, left, right, LEFT, RIGHT)
    if PARTIAL:
        seen = seen & listed_pairs(i[None, :], j[:, None], slot, masks_ptr, BLOCK)
    weights = tl.where(seen, tl.exp2(scores - lse[None, :]), 0.0)
    dv = tl.dot(weights.to(dz.dtype), dz, dv, input_precision="ieee")
    dscores = weights * (tl.dot(v, tl.trans(dz), input_precision="ieee") - delta[None, :]) * slope
    dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _backward_kv(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, map_ptr, scale_ptr, cu_q_ptr, cu_k_ptr, table_ptr, first_ptr,
    full_count_ptr, full_index_ptr, part_count_ptr, part_index_ptr, part_slot_ptr, masks_ptr,
    dk_ptr, dv_ptr, N, Sq_all, Sk_all, H, HKV, D, DV, total_q, left, right, scale, cap,
    q_b, q_s, q_h, q_d, k_b, k_s, k_h, k_d, v_b, v_s, v_h, v_d, mask_b, mask_h, most_full, most_part,
    PACKED: tl.constexpr, MAP: tl.constexpr, SCALE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    exists, tile, q_first, k_first, Sq, Sk = sequence_of(
        tl.program_id(0), table_ptr, first_ptr, cu_q_ptr, cu_k_ptr, N, Sq_all, Sk_all, PACKED
    )
    if not exists:
        return
    j = tile * BN + tl.arange(0, BN)
    channel, column = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    wide_head = kv_head.to(tl.int64)
    k = rows(k_ptr + batch * k_b + k_first * k_s + wide_head * k_h, j[:, None], channel, k_s, k_d, Sk, D)
    v = rows(v_ptr + batch * v_b + k_first * v_s + wide_head * v_h, j[:, None], column, v_s, v_d, Sk, DV)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BV], tl.float32)
    low, high = 0, Sq
    if not BLOCK:
        if RIGHT:
            low = tl.maximum(tile * BN - (Sk - Sq) - right, 0) // BM * BM
        if LEFT:
            high = tl.minimum(Sq, tl.minimum(tile * BN + BN, Sk) - (Sk - Sq) + left)

    heads = H if MAP else H // HKV
    for n in range(heads):
        head = kv_head * (0 if MAP else H // HKV) + n
        used = kv_head_of(head, map_ptr, H, HKV, MAP) == kv_head  # else: no queries
        here = q_ptr + batch * q_b + q_first * q_s + head.to(tl.int64) * q_h
        row = q_first if PACKED else batch * Sq
        there = dout_ptr + (row * H + head) * DV
        at = head.to(tl.int64) * total_q + q_first if PACKED else (batch * H + head) * Sq
        if BLOCK:
            line = batch * mask_b + head.to(tl.int64) * mask_h + tile * BN // BLOCK
            for m in range(tl.where(used, tl.load(full_count_ptr + line) * (BLOCK // BM), 0)):
                start = tl.load(full_index_ptr + line * most_full + m // (BLOCK // BM)) * BLOCK + m % (BLOCK // BM) * BM
                dk, dv = _queries(
                    dk, dv, k, v, here, there, lse_ptr + at, delta_ptr + at, scale_ptr, j, start, 0, masks_ptr, head, H,
                    Sq, Sk, left, right, scale, cap, D, DV, q_s, q_d, False, SCALE, LEFT, RIGHT, SOFTCAP, BLOCK,
                    BM, BD, BV,
                )  # fmt: skip
            for m in range(tl.where(used, tl.load(part_count_ptr + line) * (BLOCK // BM), 0)):
                entry = line * most_part + m // (BLOCK // BM)
                start = tl.load(part_index_ptr + entry) * BLOCK + m % (BLOCK // BM) * BM
                dk, dv = _queries(
                    dk, dv, k, v, here, there, lse_ptr + at, delta_ptr + at, scale_ptr, j, start,
                    tl.load(part_slot_ptr + entry), masks_ptr, head, H, Sq, Sk, left, right, scale, cap, D, DV,
                    q_s, q_d, True, SCALE, LEFT, RIGHT, SOFTCAP, BLOCK, BM, BD, BV,
                )  # fmt: skip
        else:
            for start in range(low, tl.where(used, high, low), BM):
                dk, dv = _queries(
                    dk, dv, k, v, here, there, lse_ptr + at, delta_ptr + at, scale_ptr, j, start, 0, masks_ptr, head, H,
                    Sq, Sk, left, right, scale, cap, D, DV, q_s, q_d, False, SCALE, LEFT, RIGHT, SOFTCAP, 1,
                    BM, BD, BV,
                )  # fmt: skip
    row = (k_first if PACKED else batch * Sk) + j.to(tl.int64)
    inside = (j < Sk)[:, None]
    dk_at = (row * HKV + kv_head)[:, None] * D + channel
    tl.store(dk_ptr + dk_at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside & (channel < D))
    dv_at = (row * HKV + kv_head)[:, None] * DV + column
    tl.store(dv_ptr + dv_at, dv.to(dv_ptr.dtype.element_ty), mask=inside & (column < DV))
