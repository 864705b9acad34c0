"""attention_decode in float64: key by key out of the pages, one sequence and one (Sq, keys) matrix at a time."""

import torch


def forward(
    q, k_cache, v_cache, seqlens, block_table, starts, sinks, kv_head_map, scale, left, right, softcap, num_splits
):
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    seq_q, heads, page = q.shape[1], q.shape[2], k_cache.shape[1]
    of_head = torch.arange(heads, device=q.device) // max(1, heads // k_cache.shape[2])
    of_head = of_head if kv_head_map is None else kv_head_map.long()
    outs, lses = (
        [v_cache.new_zeros(0, seq_q, heads, v_cache.shape[3]).double()],
        [q.new_zeros(0, heads, seq_q).double()],
    )
    for b, length in enumerate(seqlens.tolist()):
        first = 0 if starts is None else int(starts[b])
        keys = torch.arange(first, max(first, length), device=q.device)
        if block_table is None:
            pages = torch.full_like(keys, b)
        else:
            pages = block_table[b].long()[keys // max(page, 1)]
        k, v = (cache[pages, keys % max(page, 1)].double()[:, of_head] for cache in (k_cache, v_cache))  # (keys, H, D)
        scores = scale * torch.einsum("ihd,jhd->hij", q[b].double(), k)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = keys - (torch.arange(seq_q, device=q.device).unsqueeze(1) + length - seq_q)
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if right >= 0:
            hidden = hidden | (distance > right)
        if left >= 0:
            hidden = hidden | (distance < -left)
        scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks.double().view(-1, 1, 1).expand(heads, seq_q, 1)], -1)
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        lse = scores.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True)
        weights = (scores - lse).exp().masked_fill(empty, 0.0)[..., : len(keys)]
        outs.append(torch.einsum("hij,jhd->ihd", weights, v)[None])
        lses.append(lse.masked_fill(empty, -torch.inf)[None, ..., 0])
    return torch.cat(outs).to(q.dtype), torch.cat(lses).to(wide)
