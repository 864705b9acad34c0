"""attention by the compiled kernels of csrc/kernels/attention_forward: on an sm_90 GPU, or in the emulator.

Tensors go in as they are when TMA can take their strides (columns contiguous, all other strides and the address in
multiples of 16 bytes); others are copied first. Sinks, scale and bias go in as float32, offsets as int32.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch


def _fits_tma(tensor: torch.Tensor) -> bool:
    if tensor.data_ptr() % 16 or tensor.stride(-1) != 1:
        return False
    outer = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return all(size == 1 or (stride > 0 and stride % 8 == 0) for size, stride in outer)


def _operand(tensor: torch.Tensor) -> torch.Tensor:
    if _fits_tma(tensor):
        return tensor
    copy = tensor.contiguous()
    return copy if _fits_tma(copy) else copy.clone()  # a view into the middle of something


def _as(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def forward(
    q, k, v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k, blocks, block,
    scale, left, right, softcap, max_seqlen_q, max_seqlen_k,
):  # fmt: skip
    q, k, v = map(_operand, (q, k, v))
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    rows = (q.shape[1], q.shape[0]) if cu_seqlens_q is not None else (q.shape[0], q.shape[2], q.shape[1])
    lse = q.new_empty(rows, dtype=torch.float32)
    plain = None if out_scale is None and out_bias is None else torch.empty_like(out)
    launch(
        "attention_forward", q, k, v, out, lse, plain,
        *(_as(tensor, torch.float32) for tensor in (sinks, out_scale, out_bias)),
        *(_as(tensor, torch.int32) for tensor in (kv_head_map, cu_seqlens_q, cu_seqlens_k)),
        scale, left, right, softcap, max_seqlen_q, op="attention",
    )  # fmt: skip
    return out, lse, q.new_empty(0) if plain is None else plain
