"""attention_decode in plain PyTorch: the pages of each sequence gathered side by side, then one masked softmax.

Nothing is read back from the device, so the gathered keys are as many as a row of the table has room for. Scores are
(B, H, Sq, room): this is for a few queries. Its gradient is autograd's.
"""

from __future__ import annotations

import torch


def _seen(seq_q, room, seqlens, starts, left, right):
    """(B, Sq, room) bool."""
    j = torch.arange(room, device=seqlens.device)
    length = seqlens.long().view(-1, 1, 1)
    seen = j < length
    if starts is not None:
        seen = seen & (j >= starts.view(-1, 1, 1))
    distance = j - (torch.arange(seq_q, device=seqlens.device).unsqueeze(1) + length - seq_q)
    if right >= 0:
        seen = seen & (distance <= right)
    if left >= 0:
        seen = seen & (distance >= -left)
    return seen.expand(-1, seq_q, -1)


def _gathered(cache, block_table, pages_used, exists, head_map):
    """(B, room, heads, D) in the accumulator's dtype, 0 where no key exists: the cache may hold anything there."""
    if block_table is not None:
        cache = cache[block_table.long().masked_fill(~pages_used, 0)].flatten(1, 2)
    if head_map is not None:
        cache = cache.index_select(2, head_map)
    wide = torch.float64 if cache.dtype == torch.float64 else torch.float32
    return cache.to(wide).masked_fill(~exists, 0.0)


def forward(
    q, k_cache, v_cache, seqlens, block_table, starts, sinks, kv_head_map, scale, left, right, softcap, num_splits
):
    batch, seq_q, heads, _ = q.shape
    page = k_cache.shape[1]
    room = page if block_table is None else page * block_table.shape[1]
    used, j = None, torch.arange(room, device=q.device)
    exists = j < seqlens.unsqueeze(1)
    if starts is not None:
        exists = exists & (j >= starts.unsqueeze(1))
    if block_table is not None:
        used = torch.arange(block_table.shape[1], device=q.device) * page < seqlens.unsqueeze(1)
    k, v = (_gathered(t, block_table, used, exists[..., None, None], kv_head_map) for t in (k_cache, v_cache))
    kv_heads, width = k.shape[2], v.shape[3]
    query = q.to(k.dtype).unflatten(2, (kv_heads, heads // max(kv_heads, 1))) * scale  # (B, Sq, Hkv, group, D)
    scores = torch.einsum("bikgd,bjkd->bkgij", query, k)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_seen(seq_q, room, seqlens, starts, left, right)[:, None, None], -torch.inf)
    if sinks is not None:
        sink = sinks.to(k.dtype).view(1, kv_heads, -1, 1, 1).expand(batch, -1, -1, seq_q, 1)
        scores = torch.cat([scores, sink], -1)
    if scores.shape[-1] == 0:
        return q.new_zeros(*q.shape[:3], width), scores.new_full((batch, heads, seq_q), -torch.inf)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp().masked_fill(empty, 0.0)[..., :room]
    out = torch.einsum("bkgij,bjkd->bikgd", weights, v).reshape(batch, seq_q, heads, width)
    return out.to(q.dtype), lse.masked_fill(empty, -torch.inf).reshape(batch, heads, seq_q)
