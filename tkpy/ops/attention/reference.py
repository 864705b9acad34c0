"""attention in float64, as the formula reads: one (Sq, Sk) matrix per sequence and head."""

import torch

from tkpy.ops.attention.block_lists import block_count, dense_of_state, state_of_lists


def forward(
    q, k, v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k, blocks, block,
    scale, left, right, softcap, max_seqlen_q, max_seqlen_k,
):  # fmt: skip
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32

    def attend(q, k, v):  # (B, Sq, H, D), (B, Sk, H, D), (B, Sk, H, Dv)
        scores = scale * torch.einsum("bihd,bjhd->bhij", q, k)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen_pairs(q, k), -torch.inf)
        if sinks is not None:
            sink = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], -1)
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        lse = scores.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True)
        weights = (scores - lse).exp().masked_fill(empty, 0.0)[..., : k.shape[1]]
        out = torch.einsum("bhij,bjhd->bihd", weights, v)
        return out, lse.masked_fill(empty, -torch.inf).squeeze(-1)

    def seen_pairs(q, k):
        seq_q, seq_k = q.shape[1], k.shape[1]
        i, j = torch.arange(seq_q, device=q.device).view(-1, 1), torch.arange(seq_k, device=q.device)
        distance = j - i - (seq_k - seq_q)
        seen = torch.ones_like(distance, dtype=torch.bool)
        if right >= 0:
            seen = seen & (distance <= right)
        if left >= 0:
            seen = seen & (distance >= -left)
        if blocks:
            state = state_of_lists(blocks[:5], block_count(seq_k, block))
            seen = seen & dense_of_state(state, blocks[5], seq_q, seq_k, block)
        return seen

    def finished(out, lse):
        if out_scale is None and out_bias is None:
            return out.to(dtype), lse.to(wide), out.new_empty(0, dtype=dtype)
        moved = out if out_scale is None else out * (1 + out_scale.double())
        moved = moved if out_bias is None else moved + out_bias.double()
        return moved.to(dtype), lse.to(wide), out.to(dtype)

    heads = torch.arange(q.shape[-2], device=q.device) // max(1, q.shape[-2] // k.shape[-2])
    heads = heads if kv_head_map is None else kv_head_map.long()
    q, k, v, dtype = q.double(), k.double()[..., heads, :], v.double()[..., heads, :], q.dtype
    if cu_seqlens_q is None:
        return finished(*attend(q, k, v))
    outs, lses = [q.new_zeros(0, q.shape[1], v.shape[2])], [q.new_zeros(q.shape[1], 0)]
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for n in range(len(bounds_q) - 1):
        rows, columns = slice(bounds_q[n], bounds_q[n + 1]), slice(bounds_k[n], bounds_k[n + 1])
        out, lse = attend(q[None, rows], k[None, columns], v[None, columns])
        outs.append(out[0])
        lses.append(lse[0])
    return finished(torch.cat(outs), torch.cat(lses, 1))
