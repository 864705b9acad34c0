"""The functions of flash-attn 2 with their names, arguments, defaults and layouts, over `tkpy.attention`.

Masks are aligned at the bottom right, as in flash-attn since 2.1 and as in tkpy. Three things differ: float32 is
served too; the log-sum-exp of a query that sees no key is -inf (FlashAttention-2: +inf); and `backend=` may name one.
The backward's order of sums follows torch.use_deterministic_algorithms, so `deterministic` is refused where a gradient
on a GPU would need that and it is off.
"""

from __future__ import annotations

from typing import Any

import torch

from tkpy.arguments import INTEGERS, Arguments
from tkpy.errors import Refusal, Unsupported
from tkpy.ops.attention.op import attention
from tkpy.ops.attention_decode.op import attention_decode


def _refuse(
    function: str,
    dropout_p: float = 0.0,
    alibi_slopes: object = None,
    block_table: object = None,
    ordered: tuple[torch.Tensor, ...] = (),
) -> None:
    """Raise Unsupported for what no backend has; `ordered`: tensors whose gradients are to be deterministic."""
    reasons = []
    free = torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
    if free and any(t.requires_grad and t.device.type != "cpu" for t in ordered):
        reasons.append(Refusal("deterministic", "needs torch.use_deterministic_algorithms(True) for its gradient"))
    if dropout_p != 0.0:
        reasons.append(Refusal("dropout", f"needs dropout_p = 0, got {dropout_p}"))
    if alibi_slopes is not None:
        reasons.append(Refusal("alibi", "needs alibi_slopes = None: no backend adds a bias to the scores"))
    if block_table is not None:
        reasons.append(
            Refusal("paged", "needs keys and values in one piece; flash_attn_with_kvcache takes a block_table")
        )
    if reasons:
        raise Unsupported(function, {"tkpy": reasons})


def _window(window_size: tuple[int, int]) -> tuple[int | None, int | None]:
    """flash-attn leaves a side open for any negative number."""
    left, right = window_size
    return (None if left is None or left < 0 else left, None if right is None or right < 0 else right)


def _attend(q: Any, k: Any, v: Any, return_attn_probs: bool, window_size: tuple[int, int], **options: Any) -> Any:
    found = attention(q, k, v, window=_window(window_size), return_lse=return_attn_probs, **options)
    return (*found, None) if return_attn_probs else found


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    backend: str | None = None,
) -> Any:
    """flash_attn.flash_attn_func: q (B, Sq, H, D), k and v (B, Sk, Hkv, D) -> out (B, Sq, H, D).

    With `return_attn_probs`: (out, softmax_lse (B, H, Sq) float32, None); flash-attn's third value encodes dropout.
    """
    _refuse("flash_attn_func", dropout_p, alibi_slopes, ordered=(q, k, v) if deterministic else ())
    options = {"causal": causal, "scale": softmax_scale, "softcap": softcap, "backend": backend}
    return _attend(q, k, v, return_attn_probs, window_size, **options)


def flash_attn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    backend: str | None = None,
) -> Any:
    """flash_attn.flash_attn_kvpacked_func: kv (B, Sk, 2, Hkv, D)."""
    Arguments("flash_attn_kvpacked_func").tensor("kv", kv, "B Sk 2 Hkv D")
    options: Any = (
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
    k, v = kv.unbind(2)
    return flash_attn_func(q, k, v, *options, backend=backend)


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    backend: str | None = None,
) -> Any:
    """flash_attn.flash_attn_qkvpacked_func: qkv (B, S, 3, H, D)."""
    Arguments("flash_attn_qkvpacked_func").tensor("qkv", qkv, "B S 3 H D")
    options: Any = (
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
    q, k, v = qkv.unbind(2)
    return flash_attn_func(q, k, v, *options, backend=backend)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> Any:
    """flash_attn.flash_attn_varlen_func: q (total_q, H, D), k and v (total_k, Hkv, D), offsets int32 (N + 1,).

    With `return_attn_probs`: (out, softmax_lse (H, total_q) float32, None).
    """
    _refuse("flash_attn_varlen_func", dropout_p, alibi_slopes, block_table, (q, k, v) if deterministic else ())
    packing = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    longest = {"max_seqlen_q": int(max_seqlen_q), "max_seqlen_k": int(max_seqlen_k)}
    options = {"causal": causal, "scale": softmax_scale, "softcap": softcap, "backend": backend}
    return _attend(q, k, v, return_attn_probs, window_size, **packing, **longest, **options)


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    backend: str | None = None,
) -> Any:
    """flash_attn.flash_attn_varlen_kvpacked_func: kv (total_k, 2, Hkv, D)."""
    Arguments("flash_attn_varlen_kvpacked_func").tensor("kv", kv, "total_k 2 Hkv D")
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    options: Any = (
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(q, k, v, *packing, *options, backend=backend)


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    backend: str | None = None,
) -> Any:
    """flash_attn.flash_attn_varlen_qkvpacked_func: qkv (total, 3, H, D)."""
    Arguments("flash_attn_varlen_qkvpacked_func").tensor("qkv", qkv, "total 3 H D")
    packing = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    options: Any = (
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(q, k, v, *packing, *options, backend=backend)


@torch.no_grad()
def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    backend: str | None = None,
) -> Any:
    """flash_attn.flash_attn_with_kvcache: write k and v into the cache in place, then attend to it. No gradient.

    Args:
        q: (B, Sq, H, D).
        k_cache, v_cache: (B_cache, S_cache, Hkv, D), or with a `block_table` (blocks, block, Hkv, D) of any block size.
        k, v: (B, S_new, Hkv, D), written to positions cache_seqlens, cache_seqlens + 1, ... of each sequence.
        rotary_cos, rotary_sin: (S, rotary_dim / 2), with k and v only: k is rotated by its positions before it is
            stored, and q by cache_seqlens + i (by cache_seqlens alone without `causal` and window), in pairs of
            neighbours (`rotary_interleaved`) or of halves.
        cache_seqlens: keys in the cache before this call, an int or int32 (B,); None: the cache is full.
        cache_batch_idx: int32 (B,), the row of the cache that each sequence has; not together with a `block_table`.
        cache_leftpad: int32 (B,), the first key of each sequence.
        block_table: int32 (B, blocks of a sequence).
        softmax_scale, causal, window_size, softcap: as of `flash_attn_func`.
        alibi_slopes: refused.
        num_splits: as of `tkpy.attention_decode`.

    Returns:
        out (B, Sq, H, D); with `return_softmax_lse` (out, softmax_lse (B, H, Sq) float32).
    """
    _refuse("flash_attn_with_kvcache", alibi_slopes=alibi_slopes)
    check = Arguments("flash_attn_with_kvcache")
    check.tensor("q", q, "B Sq H D")
    check.tensor("k_cache", k_cache, "pages page Hkv D")
    check.tensor("v_cache", v_cache, "pages page Hkv Dv")
    check.tensor("k", k, "B new Hkv D", optional=v is None)
    check.tensor("v", v, "B new Hkv Dv", optional=k is None)
    check.same_dtype("k_cache", "v_cache", "k", "v")
    table = _table(check, block_table, cache_batch_idx)
    lengths = _lengths(check, cache_seqlens, table)
    window = _window(window_size)
    if rotary_cos is not None or rotary_sin is not None:
        if k is None:
            check.fail("rotary_cos", "None unless k and v are given", "a tensor")
        local = causal or window != (None, None)
        q, k = _rotary(check, q, k, rotary_cos, rotary_sin, lengths, rotary_interleaved, local)
    if k is not None and v is not None:
        if cache_seqlens is None:
            check.fail("cache_seqlens", "given where k and v are", "None")
        place = _place(check, table, lengths, k.shape[1])
        k_cache[place], v_cache[place] = k, v
        lengths = lengths + k.shape[1]
    options: dict[str, Any] = {"scale": softmax_scale, "causal": causal, "softcap": softcap, "starts": cache_leftpad}
    how: dict[str, Any] = {"num_splits": num_splits, "return_lse": return_softmax_lse, "backend": backend}
    return attention_decode(q, k_cache, v_cache, lengths, block_table=table, window=window, **options, **how)


def _table(check: Arguments, block_table: Any, cache_batch_idx: Any) -> torch.Tensor:
    """Pages of each sequence; a row of a cache in one piece is a single page."""
    check.tensor("block_table", block_table, "B n", dtypes=INTEGERS, optional=True)
    check.tensor("cache_batch_idx", cache_batch_idx, "B", dtypes=INTEGERS, optional=True)
    if block_table is not None:
        check.that(cache_batch_idx is None, "cache_batch_idx", "None where 'block_table' is given", cache_batch_idx)
        return block_table
    if cache_batch_idx is not None:
        return cache_batch_idx.unsqueeze(1)
    batch, q = check.sizes["B"], check.tensors["q"]
    check.that(check.sizes["pages"] >= batch, "k_cache", f"of at least q's {batch} rows", check.tensors["k_cache"])
    return torch.arange(batch, dtype=torch.int32, device=q.device).unsqueeze(1)


def _lengths(check: Arguments, cache_seqlens: Any, table: torch.Tensor) -> torch.Tensor:
    if isinstance(cache_seqlens, torch.Tensor):
        check.tensor("cache_seqlens", cache_seqlens, "B", dtypes=INTEGERS)
        return cache_seqlens
    check.integer("cache_seqlens", cache_seqlens, minimum=0, optional=True)
    length = check.sizes["page"] * table.shape[1] if cache_seqlens is None else cache_seqlens
    return torch.full((table.shape[0],), length, dtype=torch.int32, device=table.device)


def _place(check: Arguments, table: torch.Tensor, lengths: torch.Tensor, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(page, row in it), (B, new) each, of the keys after the first `lengths`.

    A position past the end is an index that does not exist: an error here on the CPU, an assertion on the device.
    """
    page, capacity = check.sizes["page"], check.sizes["page"] * table.shape[1]
    positions = lengths.long().unsqueeze(1) + torch.arange(new, device=lengths.device)
    if positions.device.type == "cpu" and positions.numel():
        longest = int(positions.max()) + 1
        check.that(longest <= capacity, "cache_seqlens", f"so small that {capacity} rows hold the new keys", longest)
    return table.long().gather(1, positions // max(page, 1)), positions % max(page, 1)


def _rotary(
    check: Arguments, q: Any, k: Any, cos: Any, sin: Any, lengths: torch.Tensor, interleaved: bool, local: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, k), both rotated."""
    check.tensor("rotary_cos", cos, "S half")
    check.tensor("rotary_sin", sin, "S half")
    check.flag("rotary_interleaved", interleaved)
    check.that(2 * cos.shape[1] <= q.shape[-1], "rotary_cos", f"of at most {q.shape[-1] // 2} columns", cos)

    def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        c, s = (table[positions].to(wide).unsqueeze(2) for table in (cos, sin))  # (B, S, 1, half)
        turned, rest = x[..., : 2 * c.shape[-1]].to(wide), x[..., 2 * c.shape[-1] :]
        a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        pair = (a * c - b * s, a * s + b * c)
        joined = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        return torch.cat([joined.to(x.dtype), rest], -1)

    first = lengths.long().unsqueeze(1)
    steps_q, steps_k = (torch.arange(t.shape[1], device=lengths.device) for t in (q, k))
    return rotated(q, first + (steps_q if local else steps_q * 0)), rotated(k, first + steps_k)
