"""attention_fp8: attention of e4m3 tensors with a scale for every 128 rows of a head.

FlashAttention-3 has such scales for whole heads (Shah et al. 2024, arXiv 2407.08608, section 3.3).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tkpy.arguments import FLOATS, Arguments
from tkpy.ops.attention.op import OP as ATTENTION
from tkpy.ops.attention.op import check_packing, check_values, check_window
from tkpy.ops.attention_fp8.scales import BLOCK, E4M3, block_count, quantize_blocks
from tkpy.registry import Call, Case, Maker, Op, Refusal


def attention_fp8(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    descale_q: torch.Tensor | None = None,
    descale_k: torch.Tensor | None = None,
    descale_v: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    kv_head_map: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    out_bias: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """softmax(scale (descale_q q) (descale_k k)^T) (descale_v v), as `attention` defines it, of 8-bit inputs.

    `quantize_blocks` makes tensors and scales. The compiled kernel multiplies 8-bit numbers and rounds the weights of
    the softmax to e4m3 too (their sum is not rounded), which alone costs about 2.5 % of the output's norm, and has no
    backward; the other backends compute in float32 or wider.

    Args:
        q: (B, Sq, H, D), or packed (total_q, H, D), float8_e4m3fn (float64: the same numbers, for the reference).
        k, v: (B, Sk, Hkv, D) and (B, Sk, Hkv, Dv), or packed, like q; H is a multiple of Hkv, unless
            there is a `kv_head_map`.
        descale_q: float32 (B, H, ceil(Sq / 128)), what q is to be multiplied by, block by block of 128 rows; or
            (B, H, 1), one for a head; positive; None: 1. Packed, blocks are counted from each sequence's start:
            (H, total_q // 128 + N), where block i of sequence n has the scale at cu_seqlens_q[n] // 128 + n + i, and
            what no block has is not read; or (N, H, 1), one for a head of a sequence.
        descale_k, descale_v: the same of k and v, with Hkv heads and cu_seqlens_k.
        causal, scale, window, softcap, sinks, kv_head_map, out_scale, out_bias: as in `attention`.
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k: N packed sequences, as in `attention`; offsets are
            never read by the host, except where tensors are on the CPU.
        out_dtype: of the output.
        return_lse: also return the log-sum-exp.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        out (B, Sq, H, Dv), or packed (total_q, H, Dv), in out_dtype; with `return_lse` (out, lse), lse (B, H, Sq) or
        packed (H, total_q), float32 (float64 for float64).

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("attention_fp8")
    packed = cu_seqlens_q is not None
    rows_q, rows_k = ("total_q", "total_k") if packed else ("B Sq", "B Sk")
    for name, tensor, shape in (("q", q, f"{rows_q} H D"), ("k", k, f"{rows_k} Hkv D"), ("v", v, f"{rows_k} Hkv Dv")):
        check.tensor(name, tensor, shape, dtypes=(E4M3, torch.float64))
    check.same_dtype("q", "k", "v")
    check.tensor("sinks", sinks, "H", optional=True)
    check.tensor("kv_head_map", kv_head_map, "H", dtypes=(torch.int32,), optional=True)
    check.tensor("out_scale", out_scale, "H Dv", optional=True)
    check.tensor("out_bias", out_bias, "H Dv", optional=True)
    size = check.sizes
    check.that(size["D"] >= 1, "q", "of at least one channel", q)
    check.that(size["Hkv"] >= 1, "k", "of at least one head", k)
    if kv_head_map is None:
        check.that(size["H"] % size["Hkv"] == 0, "q", f"of a multiple of k's {size['Hkv']} heads", q)
    cu_seqlens_k = check_packing(check, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    scales = [
        _check_scale(check, name, given, tensor, cu_seqlens_q)
        for name, given, tensor in (
            ("descale_q", descale_q, q),
            ("descale_k", descale_k, k),
            ("descale_v", descale_v, v),
        )
    ]
    check.flag("causal", causal)
    check.flag("return_lse", return_lse)
    scale = 1.0 / math.sqrt(size["D"]) if scale is None else scale
    check.number("scale", scale)
    check.number("softcap", softcap, minimum=0.0)
    if out_dtype not in FLOATS:
        check.fail("out_dtype", "a float dtype of 16 bits or more", repr(out_dtype), TypeError)
    left, right = check_window(check, window)
    check.same_device()
    right = 0 if causal else right
    out, lse = OP(
        *(q, k, v, *scales, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k),
        *(float(scale), left, right, float(softcap)),
        -1 if max_seqlen_q is None else max_seqlen_q,
        -1 if max_seqlen_k is None else max_seqlen_k,
        out_dtype,
        backend=backend,
    )
    return (out, lse) if return_lse else out


def _check_scale(
    check: Arguments,
    name: str,
    given: torch.Tensor | None,
    tensor: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
) -> torch.Tensor:
    """The scales of all blocks, or one for a head of a batch entry or sequence."""
    *batch, rows, heads = tensor.shape[:-1]
    sequences = [*batch, *([] if cu_seqlens is None else [cu_seqlens.shape[0] - 1])]
    if given is None:
        return torch.ones(*sequences, heads, 1, dtype=torch.float32, device=tensor.device)
    shapes = ((*batch, heads, block_count(rows, cu_seqlens)), (*sequences, heads, 1))
    check.tensor(name, given, "...", dtypes=(torch.float32, torch.float64))
    check.that(tuple(given.shape) in shapes, name, f"of shape {shapes[0]} or {shapes[1]}", given)
    return given


def fake(q: Any, k: Any, v: Any, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out_dtype = rest[-1]
    wide = torch.float64 if torch.float64 in (q.dtype, out_dtype) else torch.float32
    out = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=torch.float64 if q.dtype == torch.float64 else out_dtype)
    *batch, rows, heads = q.shape[:-1]
    return out, q.new_empty(*batch, heads, rows, dtype=wide)


def values(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    descale_q: torch.Tensor,
    descale_k: torch.Tensor,
    descale_v: torch.Tensor,
    sinks: Any,
    kv_head_map: torch.Tensor | None,
    out_scale: Any,
    out_bias: Any,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    *rest: Any,
) -> None:
    *_, most_q, most_k, _ = rest
    check_values("attention_fp8", q, k, kv_head_map, cu_seqlens_q, cu_seqlens_k, most_q, most_k)


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator"):
        return []
    q, widths, reasons = call["q"], (call["q"].shape[-1], call["v"].shape[-1]), []
    if q.dtype != E4M3:
        reasons.append(Refusal("dtype", f"needs float8_e4m3fn, got {str(q.dtype).removeprefix('torch.')}"))
    if call["out_dtype"] != torch.bfloat16:
        got = str(call["out_dtype"]).removeprefix("torch.")
        reasons.append(Refusal("out_dtype", f"needs an output of bfloat16, got {got}"))
    if any(width % 16 or not 16 <= width <= 256 for width in widths):
        reasons.append(
            Refusal("head_dim", f"needs head dimensions that are multiples of 16 from 16 to 256, got {widths}")
        )
    if max(*q.shape, *call["k"].shape) >= 2**30:
        reasons.append(Refusal("size", f"needs sizes below 2^30, got {tuple(q.shape)} and {tuple(call['k'].shape)}"))
    return reasons


def flops(call: Call) -> int:
    return ATTENTION.flops(Call("attention", {**call.args, "blocks": []}, call.device))


def nbytes(call: Call) -> int:
    q, k, v = call["q"], call["k"], call["v"]
    rows, size = q.numel() // max(q.shape[-1], 1), torch.empty(0, dtype=call["out_dtype"]).element_size()
    return (q.numel() + k.numel() + v.numel()) * q.element_size() + rows * (v.shape[-1] * size + 4)


def _inputs(m: Maker, b: int, sq: int, sk: int, h: int, hkv: int, d: int, **options: Any) -> dict[str, Any]:
    """Rows grow along the sequence, so that scales differ from block to block."""
    found: dict[str, Any] = {}
    for name, rows, heads in (("q", sq, h), ("k", sk, hkv), ("v", sk, hkv)):
        growth = torch.exp2(torch.arange(rows) // BLOCK % 4).view(1, rows, 1, 1).to(m.device)
        x = m.randn(b, rows, heads, d, dtype=torch.float32) * (growth if name == "v" else growth.rsqrt())
        found[name], found[f"descale_{name}"] = quantize_blocks(x)
    return {**found, "out_dtype": m.dtype, "return_lse": True, **options}


def _packed(
    m: Maker, lengths_q: list[int], lengths_k: list[int], h: int, hkv: int, d: int, **options: Any
) -> dict[str, Any]:
    """Rows grow from block to block of each sequence, and from sequence to sequence."""
    found: dict[str, Any] = {}
    for name, lengths, heads in (("q", lengths_q, h), ("k", lengths_k, hkv), ("v", lengths_k, hkv)):
        offsets = m.ints(0, *torch.tensor(lengths).cumsum(0).tolist()).int()
        step = torch.cat([torch.arange(n) // BLOCK + i for i, n in enumerate(lengths)])
        growth = torch.exp2(step % 4).view(-1, 1, 1).to(m.device)
        x = m.randn(sum(lengths), heads, d, dtype=torch.float32) * (growth if name == "v" else growth.rsqrt())
        found[name], found[f"descale_{name}"] = quantize_blocks(x, offsets)
        found["cu_seqlens_q" if name == "q" else "cu_seqlens_k"] = offsets
    return {**found, "out_dtype": m.dtype, "return_lse": True, **options}


def _one_sign(m: Maker, sq: int, sk: int, d: int) -> dict[str, Any]:
    q, k, v = (m.randn(1, rows, 1, d, dtype=torch.float32) for rows in (sq, sk, sk))
    return {"q": q.to(E4M3), "k": (k / 2).to(E4M3), "v": (1 + v).to(E4M3), "out_dtype": m.dtype}


#: P as e4m3 in the kernel; four times the tolerance of the output's dtype.
ROUGH: dict[str, Any] = {"tol": 4.0, "grad": False}

CASES = (
    Case("causal", lambda m: _inputs(m, 2, 37, 37, 2, 2, 16, causal=True), "self-attention", **ROUGH),
    Case("blocks", lambda m: _inputs(m, 1, 300, 417, 4, 2, 64), "several scales, grouped heads, odd lengths", **ROUGH),
    Case("width 128", lambda m: _inputs(m, 1, 130, 259, 2, 1, 128, causal=True), "wider heads", **ROUGH),
    Case("width 256", lambda m: _inputs(m, 1, 130, 259, 2, 1, 256, causal=True), "the widest", **ROUGH),
    Case("window", lambda m: _inputs(m, 1, 200, 140, 2, 1, 48, window=(60, 9)), "queries without keys", **ROUGH),
    Case(
        "softcap and sinks", lambda m: _inputs(m, 1, 70, 150, 2, 1, 32, softcap=3.0, sinks=m.randn(2)), "both", **ROUGH
    ),
    Case(
        "head map, scale and bias",
        lambda m: _inputs(
            *(m, 1, 290, 140, 3, 2, 32),
            causal=True,  # the first tile sees no key
            kv_head_map=m.ints(1, 0, 1).int(),
            out_scale=m.randn(3, 32),
            out_bias=m.randn(3, 32),
        ),
        "any key head for a query head, an output moved",
        **ROUGH,
    ),
    Case(
        "scale and bias anywhere",
        lambda m: _inputs(
            *(m, 1, 33, 65, 2, 2, 16),
            out_scale=m.randn(1 + 2 * 16, dtype=m.wide)[1:].view(2, 16),
            out_bias=m.randn(1 + 2 * 16, dtype=m.wide)[1:].view(2, 16),
        ),
        "float32 numbers that begin at no multiple of 8 bytes",
        **ROUGH,
    ),
    Case("negative scale", lambda m: _inputs(m, 1, 33, 65, 2, 2, 16, scale=-0.5), "any finite scale", **ROUGH),
    Case(
        "without scales",
        lambda m: {
            "q": m.randn(1, 2, 9, 16, dtype=torch.float32).to(E4M3).transpose(1, 2),
            "k": m.randn(1, 12, 2, 16, dtype=torch.float32).to(E4M3),
            "v": m.randn(1, 12, 2, 32, dtype=torch.float32).to(E4M3),
            "descale_v": torch.full((1, 2, 1), 0.5, device=m.device),
            "out_dtype": m.dtype,
        },
        "heads before rows, one scale for a head, values of another width",
        **ROUGH,
    ),
    Case(
        "packed",
        lambda m: _packed(m, [5, 0, 140, 1], [5, 0, 140, 1], 2, 1, 64, causal=True, max_seqlen_q=140),
        "sequences of which one is empty, one has two blocks",
        **ROUGH,
    ),
    Case(
        "packed, everything",
        lambda m: _packed(
            *(m, [70, 3, 20, 4], [130, 0, 260, 7], 3, 2, 32),
            window=(150, 5),
            softcap=4.0,
            sinks=m.randn(3),
            kv_head_map=m.ints(1, 0, 1).int(),
            out_scale=m.randn(3, 32),
            out_bias=m.randn(3, 32),
        ),
        "lengths of q and k differ, one sequence has no keys; all options",
        **ROUGH,
    ),
    Case(
        "packed, one scale for a sequence",
        lambda m: {
            **_packed(m, [9, 150], [11, 140], 2, 1, 16),
            "descale_q": torch.tensor([0.5, 0.25], device=m.device).view(2, 1, 1).repeat(1, 2, 1),
            "descale_k": torch.tensor([0.25, 0.5], device=m.device).view(2, 1, 1),
            "descale_v": None,
        },
        "whole heads, some of them without scales",
        **ROUGH,
    ),
    Case(
        "many keys",
        lambda m: _one_sign(m, 16, 8192, 32),
        "values around 1: the tensor cores' 14 bits of a sum of so many would lose a tenth of it",
        **{**ROUGH, "tol": 1.0},
    ),
    Case("no keys", lambda m: _inputs(m, 2, 5, 0, 2, 1, 16, sinks=m.randn(2)), "only the sink", **ROUGH),
    Case("no queries", lambda m: _inputs(m, 2, 0, 5, 2, 1, 16), "zero-size", **ROUGH),
    Case(
        "16k causal",
        lambda m: _inputs(m, 1, 16384, 16384, 16, 16, 128, causal=True),
        "a real shape",
        bench=True,
        **ROUGH,
    ),
)

OP = Op(
    "attention_fp8",
    attention_fp8,
    "(Tensor q, Tensor k, Tensor v, Tensor descale_q, Tensor descale_k, Tensor descale_v, Tensor? sinks, "
    "Tensor? kv_head_map, Tensor? out_scale, Tensor? out_bias, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
    "float scale, SymInt left, SymInt right, float softcap, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    "ScalarType out_dtype) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    values=values,
    supports=supports,
    kernel="attention_fp8_hd64",
)
