"""torch.nn.functional.scaled_dot_product_attention over `tkpy.attention`."""

from __future__ import annotations

import math
from typing import Any

import torch

from tkpy.arguments import Arguments
from tkpy.errors import Refusal, Unsupported
from tkpy.ops.attention import BlockMask
from tkpy.ops.attention.op import attention


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | BlockMask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Torch's function of that name: (..., H, L, E), (..., Hkv, S, E), (..., Hkv, S, Ev) -> (..., H, L, Ev).

    `is_causal` is aligned at the top left, as torch's is: query i sees keys 0 .. i, also where L != S (`tkpy.attention`
    and flash-attn align at the bottom right).

    A bool `attn_mask` (true: seen), of any shape that broadcasts to (..., H, L, S), becomes a `BlockMask`, so blocks
    that are not seen are skipped. That takes a pass over the mask and a device synchronisation in every call; a
    `tkpy.BlockMask` made once is taken as it is. A floating mask is a bias on the scores, which no kernel of tkpy adds:
    it is refused, unless `backend="eager"` asks for plain PyTorch by name. So is `dropout_p` other than 0, always.
    """
    check = Arguments("scaled_dot_product_attention")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check.tensor(name, tensor, "...")
        check.that(tensor.dim() == max(query.dim(), 2), name, f"of rank {max(query.dim(), 2)}", tensor)
    check.flag("is_causal", is_causal)
    if dropout_p != 0.0:
        reason = Refusal("dropout", f"needs dropout_p = 0, got {dropout_p}")
        raise Unsupported("scaled_dot_product_attention", {"tkpy": [reason]})
    if attn_mask is not None and is_causal:
        check.fail("attn_mask", "None where 'is_causal' is set", "a mask")
    if isinstance(attn_mask, torch.Tensor) and attn_mask.dtype != torch.bool:
        return _biased(query, key, value, attn_mask, scale, enable_gqa, backend)
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    q, k, v = _heads(check, lead, query, key, value, enable_gqa)
    mask: BlockMask | None = None
    if isinstance(attn_mask, torch.Tensor):
        mask = _block_mask(check, attn_mask, lead, q, k)
    elif attn_mask is not None:
        mask = attn_mask
    window = None
    if is_causal and q.shape[1] < k.shape[1]:
        k, v = k[:, : q.shape[1]], v[:, : q.shape[1]]  # nobody sees the keys after
    elif is_causal and q.shape[1] > k.shape[1]:
        is_causal, window = False, (None, q.shape[1] - k.shape[1])
    options: dict[str, Any] = {
        "causal": is_causal,
        "window": window,
        "block_mask": mask,
        "scale": scale,
        "backend": backend,
    }
    out = attention(q, k, v, **options).transpose(1, 2)
    return out.reshape(*lead, *(out.shape[1:] if query.dim() > 2 else out.shape[2:]))


def _biased(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    scale: float | None,
    enable_gqa: bool,
    backend: str | None,
) -> torch.Tensor:
    if backend != "eager":
        reason = Refusal("attn_mask", f"needs a bool mask or a BlockMask (or backend='eager'), got {bias.dtype}")
        raise Unsupported("scaled_dot_product_attention", {backend or "automatic": [reason]})
    function = torch.nn.functional.scaled_dot_product_attention
    return function(query, key, value, bias, scale=scale, enable_gqa=enable_gqa)


def _heads(
    check: Arguments, lead: torch.Size, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> list[torch.Tensor]:
    """The three as (B, S, heads, E); without `enable_gqa`, heads broadcast as torch's do."""
    tensors = [t if t.dim() > 2 else t.unsqueeze(0) for t in (query, key, value)]
    heads = [t.shape[-3] for t in tensors]
    if heads[1] != heads[2] or heads[0] % max(heads[1], 1) or (not enable_gqa and heads[1] not in (1, heads[0])):
        check.that(not enable_gqa, "key", f"of as many heads as value, a divisor of query's {heads[0]}", key)
        most = torch.broadcast_shapes(*((n,) for n in heads))[0]
        tensors = [t.expand(*t.shape[:-3], most, -1, -1) for t in tensors]
    batch = math.prod(lead)
    return [t.expand(*lead, *t.shape[-3:]).reshape(batch, *t.shape[-3:]).transpose(1, 2) for t in tensors]


def _block_mask(
    check: Arguments, mask: torch.Tensor, lead: torch.Size, q: torch.Tensor, k: torch.Tensor
) -> BlockMask | None:
    """A mask (..., H or 1, L or 1, S or 1) as blocks; batch and heads stay 1 where the mask has one for all."""
    seq_q, heads, seq_k = q.shape[1], q.shape[2], k.shape[1]
    rank = len(lead) + 3
    check.that(mask.dim() <= rank, "attn_mask", f"of rank {rank} at most", mask)
    full = mask.view((1,) * (rank - mask.dim()) + tuple(mask.shape))
    fits = all(size in (1, n) for size, n in zip(full.shape, (*lead, heads, seq_q, seq_k), strict=True))
    check.that(fits, "attn_mask", f"broadcastable to {(*lead, heads, seq_q, seq_k)}", mask)
    if 0 in (*lead, heads, seq_q, seq_k):
        return None
    one = all(size == 1 for size in full.shape[:-3])
    full = full.expand(*((1,) * len(lead) if one else lead), -1, seq_q, seq_k)
    full = full.reshape(-1, full.shape[-3], seq_q, seq_k) if lead else full.unsqueeze(0)
    block = 64 if max(seq_q, seq_k) <= 64 else 128
    sizes: dict[str, Any] = {"batch": full.shape[0], "heads": full.shape[1], "device": mask.device}
    return BlockMask.from_predicate(lambda b, h, i, j: full[b, h, i, j], seq_q, seq_k, block, **sizes)
