"""attention_decode: attention of a few new queries over a cache of keys and values, in pages or in one piece.

The mathematics is that of `tkpy.attention`; what differs is where the keys lie (Kwon et al. 2023, "PagedAttention",
section 4) and that every sequence of the batch has its own length, which stays on the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tkpy.arguments import INTEGERS, Arguments, autocast
from tkpy.ops.attention.op import check_window
from tkpy.registry import Call, Case, Maker, Op, Refusal

MAX_GRID, MAX_SPLITS, MAX_WIDTH = 65535, 1024, 256


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seqlens: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    kv_head_map: torch.Tensor | None = None,
    num_splits: int = 0,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention of Sq queries a sequence over the keys [starts, seqlens) of a cache, the queries' own among them.

    Key j of sequence b is row j % page of page block_table[b, j // page]. Query i sees it if starts[b] <= j <
    seqlens[b] and, with d = i + seqlens[b] - Sq, `causal`: j <= d; `window` = (left, right): d - left <= j <= d +
    right. A query that sees no key gives 0, with log-sum-exp -inf. Rows of the cache outside of [starts, seqlens) are
    not looked at: they may be uninitialised.

    Args:
        q: (B, Sq, H, D); float32, bfloat16 or float16.
        k_cache, v_cache: (pages, page, Hkv, D) and (pages, page, Hkv, Dv), H a multiple of Hkv, pages of any size.
            Without a `block_table`, one page a sequence: (B, S, Hkv, D) and (B, S, Hkv, Dv).
        seqlens: int32 or int64 (B,), keys in the cache; at most the capacity of a row of `block_table`.
        block_table: int32 or int64 (B, n), the pages of each sequence; entries past its length are not read.
            A table (B, 1) picks rows of a cache in one piece.
        starts: int32 or int64 (B,), the first key of each sequence (left padding); 0 if None.
        causal, scale, window, softcap, sinks, kv_head_map: as of `tkpy.attention`.
        num_splits: into how many parts a kernel cuts the keys, to fill the GPU; 0 chooses by the shapes.
        return_lse: also return the log-sum-exp.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        out (B, Sq, H, Dv) in q's dtype; with `return_lse` (out, lse), lse float32 (float64 for float64) (B, H, Sq).
        The gradient is that of `eager`, for all of q, both caches and sinks; the kernels have none.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("attention_decode")
    q, k_cache, v_cache = autocast(q, k_cache, v_cache)
    rows = "B S" if block_table is None else "pages page"
    check.tensor("q", q, "B Sq H D")
    check.tensor("k_cache", k_cache, f"{rows} Hkv D")
    check.tensor("v_cache", v_cache, f"{rows} Hkv Dv")
    check.tensor("seqlens", seqlens, "B", dtypes=INTEGERS)
    check.tensor("block_table", block_table, "B n", dtypes=INTEGERS, optional=True)
    check.tensor("starts", starts, "B", dtypes=INTEGERS, optional=True)
    check.tensor("sinks", sinks, "H", optional=True)
    check.tensor("kv_head_map", kv_head_map, "H", dtypes=(torch.int32,), optional=True)
    check.same_dtype("q", "k_cache", "v_cache")
    heads, kv_heads, width = check.sizes["H"], check.sizes["Hkv"], check.sizes["D"]
    check.that(width >= 1, "q", "of at least one channel", q)
    check.that(kv_heads >= 1, "k_cache", "of at least one head", k_cache)
    if kv_head_map is None:
        check.that(heads % kv_heads == 0, "q", f"of a multiple of k_cache's {kv_heads} heads", q)
    check.flag("causal", causal)
    check.flag("return_lse", return_lse)
    check.integer("num_splits", num_splits, minimum=0)
    scale = 1.0 / math.sqrt(width) if scale is None else scale
    check.number("scale", scale)
    check.number("softcap", softcap, minimum=0.0)
    left, right = check_window(check, window)
    check.same_device()
    out, lse = OP(
        *(q, k_cache, v_cache, seqlens, block_table, starts, sinks, kv_head_map),
        *(float(scale), left, 0 if causal else right, float(softcap), num_splits),
        backend=backend,
    )
    return (out, lse) if return_lse else out


def fake(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty(*q.shape[:-1], v_cache.shape[-1])
    return out, q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=wide)


def values(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seqlens: torch.Tensor,
    block_table: torch.Tensor | None,
    starts: torch.Tensor | None,
    sinks: Any,
    kv_head_map: torch.Tensor | None,
    *rest: Any,
) -> None:
    check = Arguments("attention_decode")
    pages, page, kv_heads = k_cache.shape[:3]
    if kv_head_map is not None and kv_head_map.numel():
        inside = int(kv_head_map.min()) >= 0 and int(kv_head_map.max()) < kv_heads
        check.that(inside, "kv_head_map", f"in range [0, {kv_heads})", kv_head_map)
    if not seqlens.numel():
        return
    capacity = page if block_table is None else page * block_table.shape[1]
    inside = int(seqlens.min()) >= 0 and int(seqlens.max()) <= capacity
    check.that(inside, "seqlens", f"in range [0, {capacity}], the capacity of a sequence", seqlens)
    if starts is not None:
        check.that(int(starts.min()) >= 0, "starts", "at least 0", starts)
    if block_table is not None and page:
        used = torch.arange(block_table.shape[1], device=seqlens.device) * page < seqlens.unsqueeze(1)
        wrong = used & ((block_table < 0) | (block_table >= pages))
        check.that(not bool(wrong.any()), "block_table", f"in range [0, {pages}) up to each length", block_table)


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator", "triton"):
        return []
    q, cache, table = call["q"], call["k_cache"], call["block_table"]
    widths = (q.shape[-1], call["v_cache"].shape[-1])
    reasons = []
    if backend == "triton":
        if max(widths) > MAX_WIDTH:
            reasons.append(Refusal("head_dim", f"needs at most {MAX_WIDTH} channels a head, got {max(widths)}"))
    else:
        if q.dtype not in (torch.bfloat16, torch.float16):
            reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(q.dtype).removeprefix('torch.')}"))
        if any(width % 8 or not 8 <= width <= MAX_WIDTH for width in widths):
            needed = f"needs head dimensions that are multiples of 8 from 8 to {MAX_WIDTH}"
            reasons.append(Refusal("head_dim", f"{needed}, got {widths}"))
    if q.shape[0] > MAX_GRID or q.shape[2] > MAX_GRID:
        reasons.append(Refusal("size", f"needs at most {MAX_GRID} sequences and heads, got {tuple(q.shape)}"))
    if max(*q.shape, *cache.shape, 0 if table is None else cache.shape[1] * table.shape[1]) >= 2**30:
        reasons.append(Refusal("size", f"needs sizes and room for keys below 2^30, got {tuple(cache.shape)}"))
    if call["num_splits"] > MAX_SPLITS:
        reasons.append(Refusal("num_splits", f"needs at most {MAX_SPLITS} splits, got {call['num_splits']}"))
    return reasons


def _capacity(call: Call) -> int:
    """Keys that a sequence may have: the lengths themselves are on the device."""
    table, cache = call["block_table"], call["k_cache"]
    return cache.shape[1] if table is None else cache.shape[1] * table.shape[1]


def flops(call: Call) -> int:
    batch, seq_q, heads, width = call["q"].shape
    return 2 * (width + call["v_cache"].shape[-1]) * batch * seq_q * heads * _capacity(call)


def nbytes(call: Call) -> int:
    """Every key and value once, as if the caches were full."""
    q, k, v = call["q"], call["k_cache"], call["v_cache"]
    rows = q.numel() // q.shape[-1]
    keys = q.shape[0] * _capacity(call) * k.shape[2] * (k.shape[-1] + v.shape[-1])
    return (q.numel() + keys + rows * v.shape[-1]) * q.element_size() + 4 * rows


def _dense(m: Maker, sq: int, s: int, h: int, hkv: int, d: int, lengths: list[int], **options: Any) -> dict[str, Any]:
    b = len(lengths)
    q, k, v = m.randn(b, sq, h, d), m.randn(b, s, hkv, d), m.randn(b, s, hkv, d)
    return {"q": q, "k_cache": k, "v_cache": v, "seqlens": m.ints(*lengths), "return_lse": True, **options}


def _paged(m: Maker, sq: int, page: int, n: int, h: int, hkv: int, d: int, lengths: list[int], **options: Any) -> Any:
    """Pages in no order, twice as many as are used."""
    b, pages = len(lengths), 2 * len(lengths) * n
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(0))
    table = order[: b * n].view(b, n).to(m.device, torch.int32)
    caches = {"k_cache": m.randn(pages, page, hkv, d), "v_cache": m.randn(pages, page, hkv, d), "block_table": table}
    lengths_and_q = {"q": m.randn(b, sq, h, d), "seqlens": m.ints(*lengths), "return_lse": True}
    return {**lengths_and_q, **caches, **options}


CASES = (
    Case("one query", lambda m: _dense(m, 1, 40, 4, 2, 16, [40, 17]), "the plain call: one new token a sequence"),
    Case("paged", lambda m: _paged(m, 1, 16, 4, 8, 2, 16, [1, 64, 33]), "pages in no order, lengths of all kinds"),
    Case("several queries", lambda m: _paged(m, 5, 8, 5, 4, 2, 32, [40, 5, 3]), "Sq > length: queries without keys"),
    Case("odd pages", lambda m: _paged(m, 2, 7, 11, 3, 3, 24, [77, 50]), "a page size that divides nothing"),
    Case("pages of one", lambda m: _paged(m, 1, 1, 33, 2, 1, 8, [33, 9]), "a page for each key"),
    Case("no mask", lambda m: _dense(m, 3, 33, 4, 4, 16, [33, 20], causal=False), "every query sees every key"),
    Case(
        "window, softcap, sinks",
        lambda m: _paged(m, 3, 16, 4, 4, 2, 16, [64, 30], window=(20, None), softcap=2.0, sinks=m.randn(4), scale=0.5),
        "the options together, a cap small enough to matter",
    ),
    Case(
        "open window",
        lambda m: _dense(m, 4, 50, 4, 1, 16, [50, 31], causal=False, window=(9, 1)),
        "both sides bounded, without causal",
    ),
    Case(
        "starts",
        lambda m: _dense(m, 2, 50, 4, 2, 16, [50, 31, 8], starts=m.ints(0, 13, 8)),
        "left padding, up to a whole sequence",
    ),
    Case(
        "rows of a cache",
        lambda m: {**_dense(m, 1, 30, 4, 2, 16, [9, 30, 21]), "block_table": m.ints(2, 0, 2).view(3, 1).long()},
        "a table that picks rows, one of them twice",
    ),
    Case(
        "head map",
        lambda m: _dense(m, 2, 40, 5, 3, 16, [40, 11], kv_head_map=m.ints(2, 0, 0, 2, 2)),
        "groups of unequal size, a key-value head that nobody uses",
    ),
    Case("value width", lambda m: {**_dense(m, 1, 20, 4, 2, 24, [20]), "v_cache": m.randn(1, 20, 2, 8)}, "Dv != D"),
    Case(
        "non-contiguous",
        lambda m: (
            {"q": m.randn(2, 16, 4, 1).permute(0, 3, 2, 1), "k_cache": m.randn(4, 2, 9, 16).transpose(1, 2)}
            | {"v_cache": m.randn(4, 9, 2, 32)[..., ::2], "seqlens": m.ints(12, 0, 15, 0)[::2]}
            | {"block_table": m.ints(3, 1, 0, 2).view(2, 2).T}
        ),
        "strides in every argument",
    ),
    Case(
        "three splits",
        lambda m: _paged(m, 3, 8, 12, 4, 2, 16, [90, 41, 0], num_splits=3, window=(70, None), sinks=m.randn(4)),
        "shares of the keys are joined; of a sequence without keys too",
    ),
    Case("no keys", lambda m: _dense(m, 1, 12, 4, 2, 16, [0, 12], sinks=m.randn(4)), "an empty cache: only the sink"),
    Case("no batch", lambda m: _dense(m, 1, 12, 4, 2, 16, []), "zero-size"),
    Case("no queries", lambda m: _dense(m, 0, 12, 4, 2, 16, [12]), "zero-size"),
    Case("no room", lambda m: _dense(m, 1, 0, 4, 2, 16, [0]), "a cache of no rows"),
    Case("32k", lambda m: _paged(m, 1, 256, 128, 32, 8, 128, [32768] * 8), "a long cache, one token", bench=True),
)

OP = Op(
    "attention_decode",
    attention_decode,
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor seqlens, Tensor? block_table, Tensor? starts, Tensor? sinks, "
    "Tensor? kv_head_map, float scale, SymInt left, SymInt right, float softcap, SymInt num_splits)"
    " -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    values=values,
    supports=supports,
)
