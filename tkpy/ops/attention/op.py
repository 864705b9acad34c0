"""attention: softmax(scale q k^T) v with masks (Vaswani et al. 2017, "Attention is all you need", section 3.2.1).

Computed row by row without an (Sq, Sk) matrix in memory, as FlashAttention does (Dao et al. 2022, algorithm 1).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from tkpy.arguments import INTEGERS, Arguments, autocast, sequence_bounds
from tkpy.ops.attention.block_mask import BlockMask
from tkpy.registry import Call, Case, Maker, Op, Refusal

MAX_TRITON_WIDTH = 256


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    kv_head_map: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    out_bias: torch.Tensor | None = None,
    block_mask: BlockMask | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention with grouped heads, masks given by rule or by blocks, and the log-sum-exp on request.

    Query i sees key j if all of these hold, with d = i + Sk - Sq (masks are aligned at the bottom right):

    * `causal`: j <= d;
    * `window` = (left, right): d - left <= j <= d + right; None or -1 leaves a side open;
    * `block_mask` sees (i, j);
    * packed: both lie in the same sequence (Sq, Sk, i and j are then those of the sequence).

    A query that sees no key gives 0, with log-sum-exp -inf and gradient 0.

    Args:
        q: (B, Sq, H, D), or packed (total_q, H, D); float32, bfloat16 or float16.
        k, v: (B, Sk, Hkv, D) and (B, Sk, Hkv, Dv), or packed; H is a multiple of Hkv, and query head h uses head
            h // (H / Hkv), unless there is a `kv_head_map`.
        scale: of the scores; 1 / sqrt(D) if None.
        softcap: if not 0, scores s become softcap * tanh(s / softcap), after scaling.
        sinks: (H,), one more score per head that joins the softmax's denominator and has no value.
        kv_head_map: int32 (H,), the key-value head that each query head uses, for any H: a subset of heads, pruned
            heads, groups of unequal size. In range [0, Hkv).
        out_scale, out_bias: (H, Dv) each, any of these dtypes; the output z becomes (1 + out_scale) z + out_bias, in
            float32 before its rounding (LoFiT, Yin et al. 2024, arXiv 2406.01563, section 3). A query that sees no key
            gives out_bias.
        block_mask: a `BlockMask` for (Sq, Sk), whose batch and heads are 1 or B and H. Not together with cu_seqlens.
        cu_seqlens_q: int32 or int64 (N + 1,), offsets of N packed sequences: from 0, never decreasing, to total_q.
        cu_seqlens_k: the same for keys; `cu_seqlens_q` if None, which needs total_q = total_k.
        max_seqlen_q, max_seqlen_k: bounds on the sequences' lengths, which some backends use; checked.
        return_lse: also return the log-sum-exp.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        out (B, Sq, H, Dv), or packed (total_q, H, Dv), in q's dtype; with `return_lse` (out, lse): the natural log of
        the softmax's denominator, sink included, float32 (float64 for float64), (B, H, Sq) or packed (H, total_q).
        Both are differentiable.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("attention")
    packed = cu_seqlens_q is not None
    q, k, v = autocast(q, k, v)
    check.tensor("q", q, "total_q H D" if packed else "B Sq H D")
    check.tensor("k", k, "total_k Hkv D" if packed else "B Sk Hkv D")
    check.tensor("v", v, "total_k Hkv Dv" if packed else "B Sk Hkv Dv")
    check.tensor("sinks", sinks, "H", optional=True)
    check.tensor("kv_head_map", kv_head_map, "H", dtypes=(torch.int32,), optional=True)
    check.tensor("out_scale", out_scale, "H Dv", optional=True)
    check.tensor("out_bias", out_bias, "H Dv", optional=True)
    check.same_dtype("q", "k", "v")
    heads, kv_heads, width = check.sizes["H"], check.sizes["Hkv"], check.sizes["D"]
    check.that(width >= 1, "q", "of at least one channel", q)
    check.that(kv_heads >= 1, "k", "of at least one head", k)
    if kv_head_map is None:
        check.that(heads % kv_heads == 0, "q", f"of a multiple of k's {kv_heads} heads", q)
    cu_seqlens_k = check_packing(check, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    check.flag("causal", causal)
    check.flag("return_lse", return_lse)
    if scale is None:
        scale = 1.0 / math.sqrt(width)
    check.number("scale", scale)
    check.number("softcap", softcap, minimum=0.0)
    left, right = check_window(check, window)
    if causal:
        right = 0  # the nearer of the two bounds: a window's right side is never negative
    blocks, block = _check_block_mask(check, block_mask, packed)
    check.same_device()
    out, lse, _ = OP(
        *(q, k, v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k, blocks, block),
        *(float(scale), left, right, float(softcap)),
        -1 if max_seqlen_q is None else max_seqlen_q,
        -1 if max_seqlen_k is None else max_seqlen_k,
        backend=backend,
    )
    return (out, lse) if return_lse else out


def check_packing(
    check: Arguments,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
) -> torch.Tensor | None:
    """The metadata of the packed form; returns cu_seqlens_k with its default."""
    if cu_seqlens_q is None:
        for name, value in (
            ("cu_seqlens_k", cu_seqlens_k),
            ("max_seqlen_q", max_seqlen_q),
            ("max_seqlen_k", max_seqlen_k),
        ):
            if value is not None:
                check.fail(name, "None unless 'cu_seqlens_q' is given", "a value")
        return None
    check.tensor("cu_seqlens_q", cu_seqlens_q, "N+1", dtypes=INTEGERS)
    if cu_seqlens_k is None:
        total_q, total_k = check.sizes["total_q"], check.sizes["total_k"]
        if total_q != total_k:
            check.fail("cu_seqlens_k", f"given where q and k differ in length ({total_q} and {total_k})", "None")
        cu_seqlens_k = cu_seqlens_q
    check.tensor("cu_seqlens_k", cu_seqlens_k, "N+1", dtypes=INTEGERS)
    check.integer("max_seqlen_q", max_seqlen_q, minimum=0, optional=True)
    check.integer("max_seqlen_k", max_seqlen_k, minimum=0, optional=True)
    return cu_seqlens_k


def check_window(check: Arguments, window: Any) -> tuple[int, int]:
    """(left, right) with -1 for an open side."""
    if window is None:
        return -1, -1
    if not isinstance(window, (tuple, list)):
        check.fail("window", "a pair (left, right) or None", repr(window), TypeError)
    check.that(len(window) == 2, "window", "a pair (left, right)", window)
    for side in window:
        check.integer("window", side, minimum=-1, optional=True)
    left, right = (-1 if side is None else side for side in window)
    return left, right


def _check_block_mask(check: Arguments, mask: BlockMask | None, packed: bool) -> tuple[list[torch.Tensor], int]:
    if mask is None:
        return [], 0
    if not isinstance(mask, BlockMask):
        check.fail("block_mask", "a tkpy.BlockMask or None", str(type(mask)), TypeError)
    check.that(not packed, "block_mask", "None where 'cu_seqlens_q' is given", "a BlockMask")
    batch, heads, seq_q, seq_k = mask.shape
    size = check.sizes
    for what, got, needed in (
        ("seq_q", seq_q, (size["Sq"],)),
        ("seq_k", seq_k, (size["Sk"],)),
        ("batch", batch, (1, size["B"])),
        ("heads", heads, (1, size["H"])),
    ):
        if got not in needed:
            check.fail("block_mask", f"of {what} {' or '.join(map(str, needed))}", f"{what} {got}")
    check.tensors["block_mask"] = mask.full_count
    return mask.tensors, mask.block


def fake(
    q: Any, k: Any, v: Any, sinks: Any, kv_head_map: Any, out_scale: Any, out_bias: Any, cu_seqlens_q: Any, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = (q.shape[1], q.shape[0]) if cu_seqlens_q is not None else (q.shape[0], q.shape[2], q.shape[1])
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    return out, q.new_empty(lse, dtype=wide), q.new_empty(0 if out_scale is None and out_bias is None else out.shape)


def values(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: Any,
    kv_head_map: torch.Tensor | None,
    out_scale: Any,
    out_bias: Any,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    *rest: Any,
) -> None:
    check_values("attention", q, k, kv_head_map, cu_seqlens_q, cu_seqlens_k, *rest[-2:])


def check_values(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    kv_head_map: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    most_q: int,
    most_k: int,
) -> None:
    """The contents of a head map and of offsets."""
    check = Arguments(op)
    if kv_head_map is not None and kv_head_map.numel():
        low, high = int(kv_head_map.min()), int(kv_head_map.max())
        inside = low >= 0 and high < k.shape[-2]
        check.that(inside, "kv_head_map", f"in range [0, {k.shape[-2]})", kv_head_map)
    if cu_seqlens_q is None or cu_seqlens_k is None:
        return
    for letter, offsets, tensor, most in (("q", cu_seqlens_q, q, most_q), ("k", cu_seqlens_k, k, most_k)):
        bounds = sequence_bounds(op, f"cu_seqlens_{letter}", offsets, tensor.shape[0])
        longest = max((b - a for a, b in itertools.pairwise(bounds)), default=0)
        check.that(most < 0 or most >= longest, f"max_seqlen_{letter}", f"at least the longest, {longest}", most)


def supports(backend: str, call: Call) -> list[Refusal]:
    q, widths = call["q"], (call["q"].shape[-1], call["v"].shape[-1])
    if backend == "triton" and max(widths) > MAX_TRITON_WIDTH:
        return [Refusal("head_dim", f"needs at most {MAX_TRITON_WIDTH} channels a head, got {max(widths)}")]
    if backend not in ("cuda", "emulator"):
        return []
    reasons = []
    if q.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(q.dtype).removeprefix('torch.')}"))
    if any(width % 8 or not 8 <= width <= 256 for width in widths):
        reasons.append(
            Refusal("head_dim", f"needs head dimensions that are multiples of 8 from 8 to 256, got {widths}")
        )
    if max(*q.shape, *call["k"].shape) >= 2**30:
        reasons.append(Refusal("size", f"needs sizes below 2^30, got {tuple(q.shape)} and {tuple(call['k'].shape)}"))
    return reasons


def _seen_pairs(call: Call) -> int:
    """Query-key pairs, from metadata: for blocks an upper bound, for packed calls as if the lengths were equal."""
    q, k, left, right = call["q"], call["k"], call["left"], call["right"]
    if call["cu_seqlens_q"] is not None:
        sequences = max(1, call["cu_seqlens_q"].shape[0] - 1)
        batch, seq_q, seq_k, heads = sequences, q.shape[0] / sequences, k.shape[0] / sequences, q.shape[1]
    else:
        (batch, seq_q, heads), seq_k = q.shape[:3], k.shape[1]
    per_query = float(seq_k)
    if left >= 0 and right >= 0:
        per_query = min(per_query, left + right + 1)
    elif right == 0:
        per_query = max(per_query - seq_q / 2, per_query / 2)
    if call["blocks"]:
        listed = call["blocks"][1].shape[-1] + call["blocks"][3].shape[-1]
        per_query = min(per_query, listed * call["block"])
    return int(batch * heads * seq_q * per_query)


def flops(call: Call) -> int:
    return 2 * (call["q"].shape[-1] + call["v"].shape[-1]) * _seen_pairs(call)


def nbytes(call: Call) -> int:
    q, k, v = call["q"], call["k"], call["v"]
    rows = q.numel() // q.shape[-1]
    return (q.numel() + k.numel() + v.numel() + rows * v.shape[-1]) * q.element_size() + 4 * rows


def _inputs(m: Maker, b: int, sq: int, sk: int, h: int, hkv: int, d: int, **options: Any) -> dict[str, Any]:
    return {"q": m.randn(b, sq, h, d), "k": m.randn(b, sk, hkv, d), "v": m.randn(b, sk, hkv, d), **options}


def _packed(m: Maker, lengths_q: list[int], lengths_k: list[int], **options: Any) -> dict[str, Any]:
    bounds = [m.ints(0, *torch.tensor(lengths).cumsum(0).tolist()) for lengths in (lengths_q, lengths_k)]
    shapes = ((sum(lengths_q), 4), (sum(lengths_k), 2), (sum(lengths_k), 2))
    q, k, v = (m.randn(*shape, 16) for shape in shapes)
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": bounds[0], "cu_seqlens_k": bounds[1], "return_lse": True, **options}


def _bigbird(m: Maker) -> BlockMask:
    return BlockMask.bigbird(419, heads=2, window=1, global_blocks=1, random_blocks=1, device=m.device)


def _ragged(m: Maker) -> BlockMask:
    return BlockMask.from_predicate(
        lambda b, h, q, k: ((q * 7 + k * (h + 2)) % 5 > 1) & (k // 64 != q // 64 + b) & (q != 3),
        *(130, 200, 64),
        batch=2,
        heads=4,
        device=m.device,
    )


CASES = (
    Case("causal gqa", lambda m: _inputs(m, 2, 37, 37, 4, 2, 16, causal=True, return_lse=True), "the plain call"),
    Case(
        "length 1",
        lambda m: _inputs(m, 1, 1, 1, 1, 1, 8, causal=True, sinks=m.randn(1)),
        "shortest; without the sink the gradients of q and k would be 0 up to rounding",
    ),
    Case("full", lambda m: _inputs(m, 2, 63, 65, 3, 3, 32), "no mask, both sides of a block of 64"),
    Case("mqa decode", lambda m: _inputs(m, 2, 1, 257, 8, 1, 16, causal=True, return_lse=True), "one query, prime Sk"),
    Case("causal Sq < Sk", lambda m: _inputs(m, 1, 33, 97, 4, 2, 16, causal=True), "bottom-right alignment"),
    Case(
        "causal Sq > Sk", lambda m: _inputs(m, 1, 97, 33, 2, 1, 16, causal=True, return_lse=True), "rows without keys"
    ),
    Case("value width", lambda m: {**_inputs(m, 1, 40, 40, 2, 2, 24), "v": m.randn(1, 40, 2, 7)}, "Dv != D"),
    Case("window", lambda m: _inputs(m, 1, 131, 131, 2, 2, 16, window=(17, 5), return_lse=True), "both sides bounded"),
    Case("open window", lambda m: _inputs(m, 1, 50, 70, 2, 2, 16, window=(-1, 9)), "one side open, Sq < Sk"),
    Case(
        "causal window softcap",
        lambda m: _inputs(m, 1, 67, 67, 4, 1, 16, causal=True, window=(20, None), softcap=2.0, scale=0.5),
        "the options together, a cap small enough to matter",
    ),
    Case("softcap", lambda m: _inputs(m, 1, 30, 45, 2, 1, 16, softcap=1.5, return_lse=True), "softcap, no mask"),
    Case(
        "sinks",
        lambda m: _inputs(m, 2, 41, 29, 4, 2, 16, causal=True, sinks=m.randn(4, dtype=m.wide), return_lse=True),
        "sink in the denominator, also of rows without keys",
    ),
    Case(
        "head map",
        lambda m: _inputs(m, 2, 33, 40, 5, 3, 16, causal=True, kv_head_map=m.ints(2, 0, 0, 2, 2).int()),
        "groups of unequal size, in any order, a key-value head that nobody uses",
    ),
    Case(
        "scale and bias",
        lambda m: _inputs(
            m,
            2,
            41,
            29,
            4,
            2,
            16,
            causal=True,
            return_lse=True,
            sinks=m.randn(4),
            out_scale=m.randn(4, 16, dtype=m.wide),
            out_bias=m.randn(4, 16),
        ),
        "on the output of each head, also of rows without keys; 1 + scale near 0",
    ),
    Case(
        "scale and bias anywhere",
        lambda m: _packed(
            *(m, [5, 20], [9, 11]),
            out_scale=m.randn(1 + 4 * 16, dtype=m.wide)[1:].view(4, 16),
            out_bias=m.randn(1 + 4 * 16, dtype=m.wide)[1:].view(4, 16),
        ),
        "float32 numbers that begin at no multiple of 8 bytes",
    ),
    Case(
        "bias alone, packed, mapped",
        lambda m: _packed(m, [5, 20], [9, 11], kv_head_map=m.ints(1, 0, 1, 1).int(), out_bias=m.randn(4, 16)),
        "the options of the head together",
    ),
    Case("large scores", lambda m: _inputs(m, 1, 65, 65, 2, 2, 64, causal=True, scale=4.0), "softmax of one entry"),
    Case("negative scale", lambda m: _inputs(m, 1, 9, 9, 2, 2, 8, scale=-1.0), "any finite scale"),
    Case(
        "non-contiguous",
        lambda m: (
            {"q": m.randn(2, 3, 16, 35).permute(0, 3, 1, 2), "k": m.randn(35, 2, 48, 3).permute(1, 0, 3, 2)[..., ::3]}
            | {"v": m.randn(1, 35, 3, 16).expand(2, -1, -1, -1), "causal": True}
        ),
        "strided last dimension, broadcast batch",
    ),
    Case("empty batch", lambda m: _inputs(m, 0, 5, 5, 2, 1, 8, return_lse=True), "zero-size"),
    Case("no queries", lambda m: _inputs(m, 2, 0, 5, 2, 1, 8, return_lse=True), "zero-size"),
    Case("no keys", lambda m: _inputs(m, 2, 5, 0, 2, 1, 8, return_lse=True, sinks=m.randn(2)), "only the sink"),
    Case(
        "packed", lambda m: _packed(m, [5, 0, 70, 1], [5, 0, 70, 1], causal=True, max_seqlen_q=70), "an empty sequence"
    ),
    Case(
        "packed cross",
        lambda m: _packed(m, [5, 3, 20, 4], [9, 0, 11, 4], causal=True, window=(6, None), sinks=m.randn(4)),
        "lengths of q and k differ, one sequence has no keys",
    ),
    Case(
        "bigbird", lambda m: _inputs(m, 2, 419, 419, 2, 1, 8, block_mask=_bigbird(m)), "full blocks only, prime length"
    ),
    Case(
        "predicate mask",
        lambda m: _inputs(m, 2, 130, 200, 4, 2, 8, block_mask=_ragged(m), return_lse=True, softcap=3.0),
        "partial blocks, skipped blocks, a query without keys, mask per batch entry and head",
    ),
    Case(
        "mask and window",
        lambda m: _inputs(
            m, 2, 130, 200, 4, 4, 8, block_mask=_ragged(m), causal=True, window=(90, None), sinks=m.randn(4)
        ),
        "both rules hold",
    ),
    Case(
        "4k causal",
        lambda m: _inputs(m, 4, 4096, 4096, 16, 16, 128, causal=True),
        "FlashAttention-3's grid",
        bench=True,
    ),
    Case("32k decode", lambda m: _inputs(m, 8, 1, 32768, 32, 8, 128, causal=True), "long cache, one token", bench=True),
    Case(
        "16k sink window",
        lambda m: _inputs(
            m,
            1,
            16384,
            16384,
            16,
            4,
            128,
            block_mask=BlockMask.sink_window(16384, sink=128, left=1023, device=m.device),
        ),
        "90 % of the blocks skipped",
        bench=True,
    ),
)

OP = Op(
    "attention",
    attention,
    "(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? kv_head_map, Tensor? out_scale, Tensor? out_bias, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor[] blocks, "
    "SymInt block, float scale, SymInt left, SymInt right, float softcap, SymInt max_seqlen_q, SymInt max_seqlen_k)"
    " -> (Tensor, Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    values=values,
    supports=supports,
    saves=(0, 1, 2),
    kernel="attention_forward_hd64",
)
