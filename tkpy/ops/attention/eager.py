"""attention in plain PyTorch: no (Sq, Sk) matrix, and no work on keys that a rule or a block mask excludes.

Three ways to the same (out, lse), chosen by the form of the mask:

* `_flash`: torch's own CPU kernel, where it computes exactly this (no or causal mask, no softcap, Dv = D);
* `_rows`: pieces of query rows against the slice of keys that they can see;
* `_blocks`: query blocks of equal numbers of listed key blocks, gathered into batched products.

Sinks are applied afterwards: out *= exp(lse - lse'), lse' = log(exp(lse) + exp(sink)).
The backward needs only (out, lse'), S being the scores before the softmax:

    delta = rowsum(dO * O) - dlse       P = exp(S - lse')             dV = P^T dO
    dS = P * (dO V^T - delta)           dQ = dS K, dK = dS^T Q        dsink = -sum exp(sink - lse') delta
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from tkpy.ops.attention.block_lists import FULL, NONE, band_blocks, block_count, unpack

SCORES_AT_ONCE = 1 << 20  # scores held at a time
ROWS = 128  # query rows of a piece


class Rule(NamedTuple):
    """What holds for every pair: the scale, the band -left <= j - d <= right (-1: open) and the cap."""

    scale: float
    left: int
    right: int
    softcap: float


def forward(
    q, k, v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k, blocks, block,
    scale, left, right, softcap, max_seqlen_q, max_seqlen_k,
):  # fmt: skip
    rule = Rule(scale, left, right, softcap)
    if kv_head_map is not None:
        k, v = (t.index_select(-2, kv_head_map) for t in (k, v))
    if cu_seqlens_q is None:
        out, lse = _forward(q, k, v, rule, blocks, block)
    else:
        out = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=_accumulator(q))
        lse = q.new_empty(q.shape[1], q.shape[0], dtype=_accumulator(q))
        for rows, columns in _sequences(cu_seqlens_q, cu_seqlens_k):
            found = _forward(q[None, rows], k[None, columns], v[None, columns], rule, blocks, block)
            out[rows], lse[:, rows] = found[0][0], found[1][0]
    if sinks is not None:
        total = torch.logaddexp(lse, sinks.to(lse.dtype).unsqueeze(-1))
        share = (lse - total).exp().masked_fill(total == -torch.inf, 0.0)
        out, lse = out * share.transpose(-1, -2).unsqueeze(-1), total
    if out_scale is None and out_bias is None:
        return out.to(q.dtype), lse, q.new_empty(0)
    moved = out.to(_accumulator(q))
    if out_scale is not None:
        moved = moved * (1 + out_scale.to(moved.dtype))
    if out_bias is not None:
        moved = moved + out_bias.to(moved.dtype)
    return moved.to(q.dtype), lse, out.to(q.dtype)


def backward(grads, outputs, *args, needs):
    q, k, v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k, blocks, block, *rest = args
    rule = Rule(*rest[:4])
    dout, dlse, _ = grads
    out, lse, unmoved = outputs
    wide = _accumulator(q)
    if dout is None:
        dout = torch.zeros_like(out)
    dout, out, dscale, dbias = _through_scale(dout, out, unmoved, out_scale, out_bias)
    shared = k
    if kv_head_map is not None:
        k, v = (t.index_select(-2, kv_head_map) for t in (k, v))
    delta = (dout.to(wide) * out.to(wide)).sum(-1).transpose(-1, -2)  # like lse
    if dlse is not None:
        delta = delta - dlse
    if cu_seqlens_q is None:
        found = _backward(q, k, v, dout, out, lse, delta, dlse is None, rule, blocks, block)
    else:
        found = tuple(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
        for rows, columns in _sequences(cu_seqlens_q, cu_seqlens_k):
            inputs = q[None, rows], k[None, columns], v[None, columns], dout[None, rows], out[None, rows]
            parts = _backward(*inputs, lse[None, :, rows], delta[None, :, rows], dlse is None, rule, blocks, block)
            for whole, part, where in zip(found, parts, (rows, columns, columns), strict=True):
                whole[where] = part[0]
    if kv_head_map is not None:
        dq, *found = found
        found = [dq, *(t.new_zeros(*shared.shape[:-1], t.shape[-1]).index_add_(-2, kv_head_map, t) for t in found)]
    dsinks = None
    if sinks is not None and needs[3]:
        weight = (sinks.to(wide).unsqueeze(-1) - lse).exp().masked_fill(lse == -torch.inf, 0.0)
        dsinks = -(weight * delta).sum(-1)
        dsinks = dsinks.sum(0) if dsinks.dim() == 2 else dsinks
    return [*found, dsinks, None, dscale, dbias, None, None]


def _through_scale(dout, out, unmoved, out_scale, out_bias):
    """From out = (1 + out_scale) z + out_bias: (dz, z, dscale, dbias)."""
    if out_scale is None and out_bias is None:
        return dout, out, None, None
    wide = dout.to(_accumulator(dout))
    rows = tuple(range(wide.dim() - 2))
    if out_scale is not None:
        dout = wide * (1 + out_scale.to(wide.dtype))
    return dout, unmoved, (wide * unmoved).sum(rows), wide.sum(rows)


def _accumulator(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sequences(cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for n in range(len(bounds_q) - 1):
        yield slice(bounds_q[n], bounds_q[n + 1]), slice(bounds_k[n], bounds_k[n + 1])


def _simplified(rule: Rule, seq_q: int, seq_k: int) -> Rule:
    """The rule without bounds that exclude nothing (one causal query, a window longer than the keys)."""
    left = -1 if rule.left >= seq_k - 1 else rule.left
    right = -1 if rule.right >= seq_q - 1 else rule.right
    return rule._replace(left=left, right=right)


def _flash_serves(q: torch.Tensor, v: torch.Tensor, rule: Rule) -> bool:
    plain = rule.softcap == 0 and rule.left < 0 and rule.right <= 0
    return plain and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def _forward(q, k, v, rule, blocks, block):
    batch, seq_q, heads, _ = q.shape
    seq_k = k.shape[1]
    if 0 in (batch, heads, seq_q, seq_k, v.shape[-1]) and v.shape[-1]:
        empty = torch.full((batch, heads, seq_q), -torch.inf, dtype=_accumulator(q), device=q.device)
        return q.new_zeros(batch, seq_q, heads, v.shape[-1]), empty
    if blocks:
        return _forward_blocks(q, k, v, rule, blocks, block)
    rule = _simplified(rule, seq_q, seq_k)
    serve = _forward_flash if _flash_serves(q, v, rule) else _forward_rows
    return serve(q, k, v, rule)


def _backward(q, k, v, dout, out, lse, delta, without_dlse, rule, blocks, block):
    if 0 in (*q.shape, *k.shape):
        return tuple(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    if blocks:
        return _backward_blocks(q, k, v, dout, lse, delta, rule, blocks, block)
    rule = _simplified(rule, q.shape[1], k.shape[1])
    if without_dlse and _flash_serves(q, v, rule):
        return _backward_flash(q, k, v, dout, out, lse, rule)
    return _backward_rows(q, k, v, dout, lse, delta, rule)


# ----------------------------------------------------------------------------------------------- torch's own CPU kernel
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_grad = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _flash_layout(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, S, Hkv, D) -> (B, H, S, D) with dense channels."""
    x = x.repeat_interleave(groups, 2) if groups > 1 else x
    return (x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2)


def _folded(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(B, Sq, H, D) -> (B, Sq * H/Hkv, Hkv, D): without a mask, the heads of a group are just more queries."""
    batch, seq_q, heads, width = x.shape
    groups = heads // kv_heads
    if groups == 1:
        return x
    return x.unflatten(2, (kv_heads, groups)).transpose(2, 3).reshape(batch, seq_q * groups, kv_heads, width)


def _unfolded(x: torch.Tensor, groups: int) -> torch.Tensor:
    if groups == 1:
        return x
    return x.unflatten(1, (-1, groups)).transpose(2, 3).flatten(2, 3)


def _pieces(seq_q: int, seq_k: int, causal: bool) -> tuple[int, list[tuple[slice, bool]]]:
    """(first query that sees a key, [(keys, causal among them)]): a rectangle before the square at the diagonal."""
    if not causal:
        return 0, [(slice(0, seq_k), False)]
    square = min(seq_q, seq_k)
    before = [(slice(0, seq_k - square), False)] if seq_k > square else []
    return seq_q - square, [*before, (slice(seq_k - square, seq_k), True)]


def _forward_flash(q, k, v, rule):
    if rule.right < 0:
        out, lse = _flash(*(_flash_layout(t, 1) for t in (_folded(q, k.shape[2]), k, v)), scale=rule.scale)
        groups = q.shape[2] // k.shape[2]
        lse = _unfolded(lse.transpose(1, 2).unsqueeze(-1), groups).squeeze(-1).transpose(1, 2)
        return _unfolded(out.transpose(1, 2), groups), lse
    first, pieces = _pieces(q.shape[1], k.shape[1], True)
    groups = q.shape[2] // k.shape[2]
    inputs = [_flash_layout(q[:, first:], 1), _flash_layout(k, groups), _flash_layout(v, groups)]
    parts = [_flash(inputs[0], *(t[:, :, keys] for t in inputs[1:]), 0.0, c, scale=rule.scale) for keys, c in pieces]
    out, lse = parts[-1]
    if len(parts) == 2:
        other, other_lse = parts[0]
        total = torch.logaddexp(lse, other_lse)
        out = out * (lse - total).exp().unsqueeze(-1) + other * (other_lse - total).exp().unsqueeze(-1)
        lse = total
    out = out.transpose(1, 2)
    if first:
        out = torch.nn.functional.pad(out, (0, 0, 0, 0, first, 0))
        lse = torch.nn.functional.pad(lse, (first, 0), value=-torch.inf)
    return out, lse


def _backward_flash(q, k, v, dout, out, lse, rule):
    """In float32 for half-precision inputs: the kernel would add up its partial sums in their dtype."""
    wide, groups, causal = _accumulator(q), q.shape[2] // k.shape[2], rule.right == 0
    kv_heads = k.shape[2]
    if not causal:
        q, dout, out = (_folded(t, kv_heads) for t in (q, dout, out))
        lse = _folded(lse.transpose(1, 2).unsqueeze(-1), kv_heads).squeeze(-1).transpose(1, 2)
    repeats = groups if causal else 1
    first, pieces = _pieces(q.shape[1], k.shape[1], causal)
    query, grad, result = (_flash_layout(t[:, first:].to(wide), 1) for t in (q, dout, out))
    key, value = (_flash_layout(t.to(wide), repeats) for t in (k, v))
    dq, dk, dv = torch.zeros_like(query), torch.empty_like(key), torch.empty_like(value)
    seen = lse[:, :, first:]
    for keys, square in pieces:
        part = key[:, :, keys], value[:, :, keys], result, seen
        found = _flash_grad(grad, query, *part, 0.0, square, scale=rule.scale)
        dq += found[0]
        dk[:, :, keys], dv[:, :, keys] = found[1:]
    dq = torch.nn.functional.pad(dq.transpose(1, 2), (0, 0, 0, 0, first, 0))
    dk, dv = (t.transpose(1, 2).unflatten(2, (kv_heads, repeats)).sum(3) for t in (dk, dv))
    return dq if causal else _unfolded(dq, groups), dk, dv


# --------------------------------------------------------------------------------------------- scores and their softmax
def _scores(q: torch.Tensor, k: torch.Tensor, softcap: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores of (R, M, D) scaled queries with (R, N, D) keys, and the derivative of the cap."""
    scores = torch.bmm(q, k.transpose(1, 2))
    if not softcap:
        return scores, None
    bounded = scores.div_(softcap).tanh_()
    return bounded * softcap, 1 - bounded.square()


def _softmax(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(exp(scores - top), 1 / sum, log-sum-exp), in the scores' memory; rows of -inf give 0, 0 and -inf."""
    top = scores.amax(-1, keepdim=True)
    top = top.masked_fill_(top == -torch.inf, 0.0)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    lse = top.add_(total.log()).squeeze(-1)
    return weights, total.reciprocal().masked_fill_(total == 0, 0.0), lse


def _score_grads(scores, slope, dout, v, lse, delta):
    """(P, dS) from scores (R, M, N), in their memory; lse and delta (R, M)."""
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows without keys have weights 0
    weights = scores.sub_(lse.unsqueeze(-1)).exp_()
    dscores = torch.bmm(dout, v.transpose(1, 2)).sub_(delta.unsqueeze(-1)).mul_(weights)
    return weights, dscores if slope is None else dscores.mul_(slope)


# ------------------------------------------------------------------------------------------------------- pieces of rows
def _by_group(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(B, Sq, H, D) -> (B * Hkv, Sq, H/Hkv, D) in the accumulator's dtype."""
    x = x.unflatten(2, (kv_heads, -1)).transpose(1, 2)
    return x.to(_accumulator(x)).flatten(0, 1)


def _from_group(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


def _row_pieces(shape: torch.Size, seq_k: int, rule: Rule) -> Iterator[tuple[slice, int, int, int, int]]:
    """(batch entries and heads, first and last + 1 of the query rows and of the keys they can see)."""
    count, seq_q, groups, _ = shape
    if 0 in (count, seq_q, groups, seq_k):
        return
    offset = seq_k - seq_q
    size = max(1, min(ROWS, SCORES_AT_ONCE // (groups * min(seq_k, SCORES_AT_ONCE))))
    for start in range(0, seq_q, size):
        stop = min(start + size, seq_q)
        low = max(0, start + offset - rule.left) if rule.left >= 0 else 0
        high = min(seq_k, stop + offset + rule.right) if rule.right >= 0 else seq_k
        if low >= high:
            continue
        at_once = max(1, SCORES_AT_ONCE // ((stop - start) * groups * (high - low)))
        for first in range(0, count, at_once):
            yield slice(first, first + at_once), start, stop, low, high


def _mask_rows(scores: torch.Tensor, start: int, stop: int, low: int, high: int, offset: int, rule: Rule) -> None:
    """Fill -inf where a row's band ends before the piece's; scores (R, rows * groups, keys)."""
    view = scores.unflatten(1, (stop - start, -1))
    diagonal = torch.arange(start, stop, device=scores.device).view(-1, 1, 1) + offset
    keys = torch.arange(low, high, device=scores.device)
    if rule.right >= 0:
        column = max(start + offset + rule.right + 1 - low, 0)
        view[..., column:].masked_fill_(keys[column:] > diagonal + rule.right, -torch.inf)
    if rule.left >= 0:
        column = max(stop - 1 + offset - rule.left - low, 0)
        view[..., :column].masked_fill_(keys[:column] < diagonal - rule.left, -torch.inf)


def _forward_rows(q, k, v, rule):
    batch, seq_q, heads, _ = q.shape
    kv_heads, seq_k, width = k.shape[2], k.shape[1], v.shape[3]
    query = _by_group(q, kv_heads) * rule.scale
    key, value = (_by_group(t, kv_heads).squeeze(2) for t in (k, v))
    out = query.new_zeros(*query.shape[:-1], width)
    lse = query.new_full(query.shape[:-1], -torch.inf)
    for some, start, stop, low, high in _row_pieces(query.shape, seq_k, rule):
        scores, _ = _scores(query[some, start:stop].flatten(1, 2), key[some, low:high], rule.softcap)
        _mask_rows(scores, start, stop, low, high, seq_k - seq_q, rule)
        weights, inverse, found = _softmax(scores)
        shape = (stop - start, heads // kv_heads)
        out[some, start:stop] = torch.bmm(weights, value[some, low:high]).mul_(inverse).unflatten(1, shape)
        lse[some, start:stop] = found.unflatten(1, shape)
    return _from_group(out, batch), _from_group(lse, batch).transpose(1, 2)


def _backward_rows(q, k, v, dout, lse, delta, rule):
    batch, seq_q, _, _ = q.shape
    kv_heads, seq_k = k.shape[2], k.shape[1]
    query, grad = _by_group(q, kv_heads) * rule.scale, _by_group(dout, kv_heads)
    key, value = (_by_group(t, kv_heads).squeeze(2) for t in (k, v))
    lse, delta = (_by_group(t.transpose(1, 2).unsqueeze(-1), kv_heads).squeeze(-1) for t in (lse, delta))
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for some, start, stop, low, high in _row_pieces(query.shape, seq_k, rule):
        rows = (some, slice(start, stop))
        q_rows, grad_rows = query[rows].flatten(1, 2), grad[rows].flatten(1, 2)
        k_rows = key[some, low:high]
        scores, slope = _scores(q_rows, k_rows, rule.softcap)
        _mask_rows(scores, start, stop, low, high, seq_k - seq_q, rule)
        row_sums = lse[rows].flatten(1), delta[rows].flatten(1)
        weights, dscores = _score_grads(scores, slope, grad_rows, value[some, low:high], *row_sums)
        dq[rows] = torch.bmm(dscores, k_rows).mul_(rule.scale).unflatten(1, dq[rows].shape[1:3])
        dk[some, low:high].baddbmm_(dscores.transpose(1, 2), q_rows)
        dv[some, low:high].baddbmm_(weights.transpose(1, 2), grad_rows)
    return _from_group(dq, batch), *(_from_group(t.unsqueeze(2), batch) for t in (dk, dv))


# ------------------------------------------------------------------------------------------------------ gathered blocks
class _Listed(NamedTuple):
    """Query blocks (flat over batch, head, block) in descending order of their numbers of key blocks."""

    row: torch.Tensor  # (R,)
    length: list[int]  # (R,) numbers of key blocks
    block: torch.Tensor  # (R, most) key block
    slot: torch.Tensor  # (R, most) FULL, NONE (unused) or the slot of an element mask
    source: torch.Tensor  # (R,) first key block of the row's batch entry and kv head
    banded: torch.Tensor  # (R, most) whether the band or the end of the keys cuts the block


def _listed_blocks(
    shape: torch.Size, k_shape: torch.Size, rule: Rule, blocks: list[torch.Tensor], block: int
) -> _Listed:
    batch, seq_q, heads, _ = shape
    seq_k, kv_heads = k_shape[1], k_shape[2]
    full_count, full_index, partial_count, partial_index, partial_slot, _ = blocks[:6]
    n_q, n_k = full_count.shape[2], block_count(seq_k, block)

    def unused(count: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.arange(index.shape[-1], device=index.device) >= count.unsqueeze(-1)

    index = torch.cat([full_index, partial_index], -1).long()
    slot = torch.cat([torch.full_like(full_index, FULL), partial_slot], -1)
    slot = slot.masked_fill(torch.cat([unused(full_count, full_index), unused(partial_count, partial_index)], -1), NONE)
    rows = torch.arange(n_q, device=index.device).view(-1, 1)
    some, every = band_blocks(rows, index, block, seq_q, seq_k, rule.left, rule.right)
    slot = slot.masked_fill(~some, NONE)
    order = torch.argsort((slot == NONE).to(torch.uint8), dim=-1, stable=True)  # used ones first
    cut = ~every | ((index + 1) * block > seq_k)
    index, slot, cut = (t.gather(-1, order).expand(batch, heads, n_q, -1).flatten(0, 2) for t in (index, slot, cut))
    count, row = (slot != NONE).sum(-1).sort(descending=True, stable=True)
    pair = row // n_q
    head = pair // heads * kv_heads + pair % heads // (heads // kv_heads)
    return _Listed(row, count.tolist(), index[row], slot[row], head * n_k, cut[row])


def _gathers(listed: _Listed, block: int, n_q: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(rows of `listed`, their query blocks, positions of their key blocks, query block number within the sequence)."""
    start, rows = 0, len(listed.length)
    while start < rows and listed.length[start]:
        width = listed.length[start]
        stop = min(rows, start + max(1, SCORES_AT_ONCE // (width * block**2)))
        while not listed.length[stop - 1]:
            stop -= 1
        part = slice(start, stop)
        row = listed.row[part]
        yield part, row, (listed.source[part, None] + listed.block[part, :width]), row % n_q
        start = stop


def _to_blocks(x: torch.Tensor, block: int) -> torch.Tensor:
    """(B, S, H, D) -> (B * H * blocks, block, D) in the accumulator's dtype, zeros after the end."""
    x = x.transpose(1, 2).to(_accumulator(x))
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % block))
    return x.reshape(-1, block, x.shape[-1])


def _from_blocks(x: torch.Tensor, batch: int, heads: int, length: int) -> torch.Tensor:
    return x.reshape(batch, heads, -1, x.shape[-1])[:, :, :length].transpose(1, 2)


def _mask_blocks(scores, listed, part, q_block, masks, block, seq_q, seq_k, rule):
    """Fill -inf in scores (R, block, n * block): unused entries, element masks, and where the band or the keys end."""
    view = scores.unflatten(2, (-1, block)).transpose(1, 2)  # (R, n, block, block)
    slot, cut = listed.slot[part, : view.shape[1]], listed.banded[part, : view.shape[1]]
    unused = slot == NONE
    if bool(unused.any()):
        view[unused] = -torch.inf
    partial = slot >= 0
    if bool(partial.any()):
        view[partial] = view[partial].masked_fill_(~unpack(masks[slot[partial].long()]), -torch.inf)
    cut = cut & ~unused
    if bool(cut.any()):
        row, entry = cut.nonzero(as_tuple=True)
        inner = torch.arange(block, device=scores.device)
        key = (listed.block[part][row, entry] * block).view(-1, 1, 1) + inner
        distance = key - (q_block[row] * block).view(-1, 1, 1) - inner.view(-1, 1) - (seq_k - seq_q)
        hidden = key >= seq_k
        if rule.right >= 0:
            hidden = hidden | (distance > rule.right)
        if rule.left >= 0:
            hidden = hidden | (distance < -rule.left)
        view[row, entry] = view[row, entry].masked_fill_(hidden, -torch.inf)


def _forward_blocks(q, k, v, rule, blocks, block):
    batch, seq_q, heads, _ = q.shape
    seq_k, n_q = k.shape[1], block_count(q.shape[1], block)
    listed = _listed_blocks(q.shape, k.shape, rule, blocks, block)
    query = _to_blocks(q, block) * rule.scale
    key, value = (_to_blocks(t, block) for t in (k, v))
    out = query.new_zeros(len(query), block, v.shape[3])
    lse = query.new_full((len(query), block), -torch.inf)
    for part, row, gathered, q_block in _gathers(listed, block, n_q):
        keys = key[gathered].flatten(1, 2)
        scores, _ = _scores(query[row], keys, rule.softcap)
        _mask_blocks(scores, listed, part, q_block, blocks[5], block, seq_q, seq_k, rule)
        weights, inverse, found = _softmax(scores)
        out[row] = torch.bmm(weights, value[gathered].flatten(1, 2)).mul_(inverse)
        lse[row] = found
    lse = lse.view(batch, heads, -1)[:, :, :seq_q]
    return _from_blocks(out, batch, heads, seq_q), lse


def _backward_blocks(q, k, v, dout, lse, delta, rule, blocks, block):
    batch, seq_q, heads, _ = q.shape
    seq_k, kv_heads, n_q = k.shape[1], k.shape[2], block_count(q.shape[1], block)
    listed = _listed_blocks(q.shape, k.shape, rule, blocks, block)
    query, grad = _to_blocks(q, block) * rule.scale, _to_blocks(dout, block)
    key, value = (_to_blocks(t, block) for t in (k, v))
    lse, delta = (_to_blocks(t.transpose(1, 2).unsqueeze(-1), block).squeeze(-1) for t in (lse, delta))
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for part, row, gathered, q_block in _gathers(listed, block, n_q):
        keys, values = key[gathered].flatten(1, 2), value[gathered].flatten(1, 2)
        scores, slope = _scores(query[row], keys, rule.softcap)
        _mask_blocks(scores, listed, part, q_block, blocks[5], block, seq_q, seq_k, rule)
        weights, dscores = _score_grads(scores, slope, grad[row], values, lse[row], delta[row])
        dq[row] = torch.bmm(dscores, keys).mul_(rule.scale)
        flat = gathered.flatten()
        dk.index_add_(0, flat, torch.bmm(dscores.transpose(1, 2), query[row]).reshape(-1, *dk.shape[1:]))
        dv.index_add_(0, flat, torch.bmm(weights.transpose(1, 2), grad[row]).reshape(-1, *dv.shape[1:]))
    dk, dv = (_from_blocks(t, batch, kv_heads, seq_k) for t in (dk, dv))
    return _from_blocks(dq, batch, heads, seq_q), dk, dv
