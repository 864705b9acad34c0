"""Hugging Face transformers: `register()`, then attn_implementation="tkpy" (or model.set_attn_implementation("tkpy")).

transformers asks a registered implementation for two functions: one makes the mask, once for all layers of a kind; the
other attends. Here the mask is None where causal (or no) masking says everything, and else a `tkpy.BlockMask` made
from transformers' own mask function: padding on either side, sliding windows, chunks, packed documents.
Making a BlockMask reads the device, as transformers' own look at the padding does: with `torch.compile`, make graphs
of the layers, not of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask as FlexBlockMask

from tkpy.errors import Refusal, Unsupported
from tkpy.ops.attention import BlockMask
from tkpy.ops.attention.op import attention


def register(name: str = "tkpy") -> None:
    """Make `tkpy.attention` known to transformers as attention implementation `name`; needs transformers 5."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, make_mask)


class PreparedMask(FlexBlockMask):
    """A tkpy BlockMask in a form that transformers hands on as it is: by type, it knows tensors and FlexAttention's."""

    def __init__(self, blocks: BlockMask):
        self.blocks = blocks
        self.seq_lengths = (blocks.seq_q, blocks.seq_k)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, seq_q, seq_k)."""
        return self.blocks.shape

    def contiguous(self) -> PreparedMask:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"PreparedMask({self.blocks!r})"


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> PreparedMask | None:
    """The mask function of AttentionMaskInterface; None where the attention function's own rule is the mask.

    Args:
        batch_size, q_length, kv_length: of the attention.
        q_offset, kv_offset: positions of the first query (a tensor from a static cache) and of the first key.
        mask_function: (b, h, q, k) -> bool on positions (None: causal).
        attention_mask: bool (B, positions), false for padding.
        local_size: the window or chunk of `mask_function`, if it has one.
        allow_is_causal_skip: `mask_function` is causal, but for its window or chunk.
        allow_is_bidirectional_skip: `mask_function` is everything, but for its window.
        use_vmap: `mask_function` takes scalars only.
        device: of the mask.
        others: `config` tells chunks from windows; the rest is ignored.
    """
    from transformers import masking_utils

    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length]
        padding = None if bool(padding.all()) else padding
    chunked = (
        getattr(others.get("config"), "attention_chunk_size", None) == local_size
    )  # keys behind a border are hidden
    short = local_size is None or (kv_length <= local_size and (kv_offset == 0 or not chunked))
    ends_together = int(q_offset) + q_length == kv_offset + kv_length
    causal = allow_is_causal_skip and not allow_is_bidirectional_skip and ends_together
    if padding is None and short and (causal or allow_is_bidirectional_skip):
        return None
    rule: Callable[..., Any] = masking_utils.causal_mask_function if mask_function is None else mask_function
    if use_vmap:
        shape = (batch_size, q_length, kv_length, int(q_offset), kv_offset)
        dense: Any = masking_utils.sdpa_mask(
            *shape, rule, attention_mask, allow_is_causal_skip=False, use_vmap=True, device=device
        )
        return PreparedMask(_of_dense(dense))

    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        found = rule(b, h, q + int(q_offset), k + kv_offset)
        return found if padding is None else found & padding[b, k]

    sizes: dict[str, Any] = {"batch": batch_size, "device": device}
    return PreparedMask(BlockMask.from_predicate(seen, q_length, kv_length, _block(q_length, kv_length), **sizes))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PreparedMask | BlockMask | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of AttentionInterface: (B, H, L, D) -> (B, L, H, D) and no weights.

    Args:
        module: the layer; its `is_causal` counts where the argument is None.
        query, key, value: (B, H, L, D), (B, Hkv, S, D), (B, Hkv, S, Dv).
        attention_mask: what `make_mask` returned, or the caller's own: a bool (B or 1, H or 1, L, S) or a BlockMask.
        dropout, scaling, sliding_window, softcap, is_causal: transformers' names for `tkpy.attention`'s.
        s_aux: sinks.
        others: refused where they would change the result.
    """
    _refuse(attention_mask, dropout, others)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap or 0.0, "sinks": s_aux}
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    packed = others.get("cu_seq_lens_q") is not None and attention_mask is None
    if attention_mask is not None:
        options["block_mask"] = _blocks(attention_mask)
    else:
        options["causal"] = causal
        if sliding_window is not None:
            options["window"] = (sliding_window - 1, 0 if causal else sliding_window - 1)
    if not packed:
        return attention(q, k, v, **options), None
    offsets = {"cu_seqlens_q": others["cu_seq_lens_q"], "cu_seqlens_k": others["cu_seq_lens_k"]}
    return attention(q[0], k[0], v[0], **options, **offsets)[None], None


def _refuse(mask: object, dropout: float, others: dict[str, Any]) -> None:
    reasons = []
    if dropout:
        reasons.append(Refusal("dropout", f"needs attention_dropout = 0 or model.eval(), got {dropout}"))
    if isinstance(mask, torch.Tensor) and mask.dtype != torch.bool:
        reasons.append(Refusal("attn_mask", f"needs a bool mask (true: seen), got {mask.dtype}"))
    if others.get("position_bias") is not None:
        reasons.append(Refusal("position_bias", "needs none: no backend adds a bias to the scores"))
    if others.get("output_attentions"):
        reasons.append(Refusal("output_attentions", "needs output_attentions = False: the weights are never formed"))
    if others.get("cache") is not None:
        reasons.append(Refusal("paged_cache", "needs generate(); continuous batching is not served"))
    if reasons:
        raise Unsupported("interop.transformers", {"tkpy": reasons})


def _blocks(mask: PreparedMask | BlockMask | torch.Tensor) -> BlockMask:
    if isinstance(mask, torch.Tensor):
        return _of_dense(mask)
    return mask.blocks if isinstance(mask, PreparedMask) else mask


def _block(seq_q: int, seq_k: int) -> int:
    return 64 if min(seq_q, seq_k) <= 64 else 128


def _of_dense(mask: torch.Tensor) -> BlockMask:
    """A bool mask (B, H, L, S) as blocks."""
    batch, heads, seq_q, seq_k = mask.shape
    sizes: dict[str, Any] = {"batch": batch, "heads": heads, "device": mask.device}
    return BlockMask.from_predicate(lambda b, h, q, k: mask[b, h, q, k], seq_q, seq_k, _block(seq_q, seq_k), **sizes)
