"""attention_fp8 by the compiled kernel of csrc/kernels/attention_fp8: on an sm_90 GPU, or in the emulator.

Tensors go in as they are when TMA can take their strides (columns contiguous, all others and the address in multiples
of 16 bytes); others are copied first.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.attention.cuda import in_pairs
from tkpy.ops.attention_fp8.scales import scales_of_blocks


def _fits_tma(tensor: torch.Tensor) -> bool:
    if tensor.data_ptr() % 16 or tensor.stride(-1) != 1:
        return False
    outer = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return all(size == 1 or (stride > 0 and stride % 16 == 0) for size, stride in outer)


def _operand(tensor: torch.Tensor) -> torch.Tensor:
    if _fits_tma(tensor):
        return tensor
    copy = tensor.contiguous()
    return copy if _fits_tma(copy) else copy.clone()  # a view into the middle of something


def forward(
    q, k, v, descale_q, descale_k, descale_v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k,
    scale, left, right, softcap, max_seqlen_q, max_seqlen_k, out_dtype,
):  # fmt: skip
    q, k, v = map(_operand, (q, k, v))
    out = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=out_dtype)
    *batch, rows, heads = q.shape[:-1]
    lse = q.new_empty(*batch, heads, rows, dtype=torch.float32)
    scales = [
        scales_of_blocks(x, descale, offsets).float().contiguous()
        for x, descale, offsets in (
            (q, descale_q, cu_seqlens_q),
            (k, descale_k, cu_seqlens_k),
            (v, descale_v, cu_seqlens_k),
        )
    ]
    sinks = None if sinks is None else sinks.float().contiguous()
    out_scale, out_bias = in_pairs(out_scale), in_pairs(out_bias)
    kv_head_map, cu_seqlens_q, cu_seqlens_k = (
        None if t is None else t.int().contiguous() for t in (kv_head_map, cu_seqlens_q, cu_seqlens_k)
    )
    launch(
        *("attention_fp8", q, k, v, out, lse, *scales, sinks, kv_head_map, out_scale, out_bias),
        *(cu_seqlens_q, cu_seqlens_k, scale, left, right, softcap, max_seqlen_q),
        op="attention_fp8",
    )
    return out, lse
