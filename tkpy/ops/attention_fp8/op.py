"""attention_fp8: attention of e4m3 tensors with a scale for every 128 rows of a head.

FlashAttention-3 has such scales for whole heads (Shah et al. 2024, arXiv 2407.08608, section 3.3).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tkpy.arguments import FLOATS, Arguments
from tkpy.ops.attention.op import OP as ATTENTION
from tkpy.ops.attention.op import check_window
from tkpy.registry import Call, Case, Maker, Op, Refusal

E4M3 = torch.float8_e4m3fn
BLOCK = 128  # rows that share a scale
LARGEST = 448.0  # of e4m3


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
    out_dtype: torch.dtype = torch.bfloat16,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """softmax(scale (descale_q q) (descale_k k)^T) (descale_v v), as `attention` defines it, of 8-bit inputs.

    `quantize_blocks` makes tensors and scales. The compiled kernel multiplies 8-bit numbers and rounds the weights of
    the softmax to e4m3 too (their sum is not rounded), which alone costs about 2.5 % of the output's norm, and has no
    backward; the other backends compute in float32 or wider.

    Args:
        q: (B, Sq, H, D), float8_e4m3fn (float64: the same numbers, for the reference).
        k, v: (B, Sk, Hkv, D) and (B, Sk, Hkv, Dv), like q; H is a multiple of Hkv, unless
            there is a `kv_head_map`.
        descale_q: float32 (B, H, ceil(Sq / 128)), what q is to be multiplied by, block by block of 128 rows; or
            (B, H, 1), one for a head; positive; None: 1.
        descale_k, descale_v: the same of k and v, (B, Hkv, ceil(Sk / 128)) or (B, Hkv, 1).
        causal, scale, window, softcap, sinks, kv_head_map, out_scale, out_bias: as in `attention`.
        out_dtype: of the output.
        return_lse: also return the log-sum-exp.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        out (B, Sq, H, Dv) in out_dtype; with `return_lse` (out, lse), lse (B, H, Sq) float32 (float64 for float64).

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("attention_fp8")
    for name, tensor, shape in (("q", q, "B Sq H D"), ("k", k, "B Sk Hkv D"), ("v", v, "B Sk Hkv Dv")):
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
    scales = [
        _check_scale(check, name, given, tensor)
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
        *(q, k, v, *scales, sinks, kv_head_map, out_scale, out_bias),
        *(float(scale), left, right, float(softcap), out_dtype),
        backend=backend,
    )
    return (out, lse) if return_lse else out


def _check_scale(check: Arguments, name: str, given: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor:
    """The scales of all blocks, or one for a head."""
    batch, rows, heads = tensor.shape[:3]
    if given is None:
        return torch.ones(batch, heads, 1, dtype=torch.float32, device=tensor.device)
    blocks = -(-rows // BLOCK)
    check.tensor(name, given, "batch heads blocks", dtypes=(torch.float32, torch.float64))
    for key in ("batch", "heads", "blocks"):
        del check.sizes[key]
    fits = given.shape[:2] == (batch, heads) and given.shape[2] in (1, blocks)
    check.that(fits, name, f"of shape {(batch, heads, blocks)} or {(batch, heads, 1)}", given)
    return given


def quantize_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x as e4m3, and the scales that `attention_fp8` takes: x is about x8 * descale, block by block.

    A scale is the power of two that brings the largest entry of its block of 128 rows of a head into (224, 448]:
    scaling itself rounds nothing, and e4m3 has as many bits everywhere in its range. A block of zeros has scale 1.

    Args:
        x: (B, S, H, D), any float dtype, finite.

    Returns:
        x8: (B, S, H, D), float8_e4m3fn.
        descale: (B, H, ceil(S / 128)), float32.
    """
    check = Arguments("quantize_blocks")
    check.tensor("x", x, "B S H D")
    batch, rows, heads, width = x.shape
    blocks = -(-rows // BLOCK)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, blocks * BLOCK - rows))
    largest = padded.view(batch, blocks, BLOCK * heads, width).unflatten(2, (BLOCK, heads)).abs().amax((2, 4)).float()
    exponent = torch.ceil(torch.log2(largest / LARGEST)).clamp(-126, 127)
    descale = torch.where(largest > 0, torch.exp2(exponent), 1.0)  # (B, blocks, H)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    scaled = wide / descale.repeat_interleave(BLOCK, 1)[:, :rows, :, None]
    return scaled.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), descale.transpose(1, 2).contiguous()


def dequantized(x: torch.Tensor, descale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, S, H, D) of `dtype`, scales applied."""
    blocks = descale.to(dtype).expand(-1, -1, -(-x.shape[1] // BLOCK)).transpose(1, 2)
    rows = blocks.repeat_interleave(BLOCK, 1)[:, : x.shape[1], :, None]
    return x.to(dtype) * rows


def fake(q: Any, k: Any, v: Any, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out_dtype = rest[-1]
    wide = torch.float64 if torch.float64 in (q.dtype, out_dtype) else torch.float32
    out = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=torch.float64 if q.dtype == torch.float64 else out_dtype)
    return out, q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=wide)


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator"):
        return []
    q, widths, reasons = call["q"], (call["q"].shape[-1], call["v"].shape[-1]), []
    if q.dtype != E4M3:
        reasons.append(Refusal("dtype", f"needs float8_e4m3fn, got {str(q.dtype).removeprefix('torch.')}"))
    if call["out_dtype"] != torch.bfloat16:
        got = str(call["out_dtype"]).removeprefix("torch.")
        reasons.append(Refusal("out_dtype", f"needs an output of bfloat16, got {got}"))
    if any(width % 16 or not 16 <= width <= 128 for width in widths):
        reasons.append(
            Refusal("head_dim", f"needs head dimensions that are multiples of 16 from 16 to 128, got {widths}")
        )
    if max(*q.shape, *call["k"].shape) >= 2**30:
        reasons.append(Refusal("size", f"needs sizes below 2^30, got {tuple(q.shape)} and {tuple(call['k'].shape)}"))
    return reasons


def flops(call: Call) -> int:
    return ATTENTION.flops(Call("attention", {**call.args, "cu_seqlens_q": None, "blocks": []}, call.device))


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


#: P as e4m3 in the kernel; four times the tolerance of the output's dtype.
ROUGH: dict[str, Any] = {"tol": 4.0, "grad": False}

CASES = (
    Case("causal", lambda m: _inputs(m, 2, 37, 37, 2, 2, 16, causal=True), "self-attention", **ROUGH),
    Case("blocks", lambda m: _inputs(m, 1, 300, 417, 4, 2, 64), "several scales, grouped heads, odd lengths", **ROUGH),
    Case("blocks of 128", lambda m: _inputs(m, 1, 130, 259, 2, 1, 128, causal=True), "the wider kernel", **ROUGH),
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
    "Tensor? kv_head_map, Tensor? out_scale, Tensor? out_bias, float scale, SymInt left, SymInt right, float softcap, "
    "ScalarType out_dtype) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
)
