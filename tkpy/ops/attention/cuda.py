"""attention by the compiled kernels of csrc/kernels/attention_*: on an sm_90 GPU, or in the emulator.

Tensors go in as they are when TMA can take their strides (columns contiguous, all other strides and the address in
multiples of 16 bytes); others are copied first. Sinks, scale and bias go in as float32, offsets as int32.

The backward is three kernels: what each query row needs, then dK and dV with the sums of dQ, then dQ's rounding. The
sums are of float32, in an order that differs from run to run, unless `torch.use_deterministic_algorithms(True)` holds:
then key tiles take turns, and the same call gives the same bits.
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


def in_pairs(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """As float32, for a kernel that reads two numbers at a time: at a multiple of 8 bytes."""
    numbers = _as(tensor, torch.float32)
    return numbers if numbers is None or numbers.data_ptr() % 8 == 0 else numbers.clone()


def forward(
    q, k, v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k, blocks, block,
    scale, left, right, softcap, max_seqlen_q, max_seqlen_k,
):  # fmt: skip
    q, k, v = map(_operand, (q, k, v))
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    rows = (q.shape[1], q.shape[0]) if cu_seqlens_q is not None else (q.shape[0], q.shape[2], q.shape[1])
    lse = q.new_empty(rows, dtype=torch.float32)
    plain = None if out_scale is None and out_bias is None else torch.empty_like(out)
    options = [_as(sinks, torch.float32), in_pairs(out_scale), in_pairs(out_bias), _as(kv_head_map, torch.int32)]
    rule = (scale, left, right, softcap)
    if blocks:
        lists = [tensor.contiguous() for tensor in blocks[:6]]
        launch("attention_forward_blocks", q, k, v, out, lse, plain, *options, *lists, block, *rule, op="attention")
    else:
        offsets = [_as(tensor, torch.int32) for tensor in (cu_seqlens_q, cu_seqlens_k)]
        launch("attention_forward", q, k, v, out, lse, plain, *options, *offsets, *rule, max_seqlen_q, op="attention")
    return out, lse, q.new_empty(0) if plain is None else plain


def _query_tiles(
    q: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor | None, block: int
) -> tuple[int, int, int, int]:
    """(batch entries, tiles of one head, rows of a tile, width of the kernels), as params.h of attention_backward has
    them."""
    width = -(-max(q.shape[-1], v.shape[-1]) // 32) * 32
    rows = 128 if width <= 64 and block != 64 else 64
    if cu_seqlens_q is None:
        return q.shape[0], -(-q.shape[1] // rows), rows, width
    return 1, q.shape[0] // rows + cu_seqlens_q.shape[0] - 1, rows, width


def _in_order() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def backward(grads, outputs, *args, needs):
    (
        q, k, v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k, blocks, block,
        scale, left, right, softcap, *_
    ) = args  # fmt: skip
    dout, dlse, _ = grads
    out, lse, unmoved = outputs
    z = (out if out_scale is None and out_bias is None else unmoved).contiguous()
    dout = torch.zeros_like(z) if dout is None else dout
    batch, tiles, rows, width = _query_tiles(q, v, cu_seqlens_q, block)
    dz = None if out_scale is None else torch.empty_like(z)
    delta = torch.zeros_like(lse) if sinks is not None and needs[3] else None
    stats = lse.new_empty(batch, q.shape[-2], tiles, 2, rows)
    sums = lse.new_zeros(batch, q.shape[-2], tiles, 2, rows * width // 2)
    turns = lse.new_zeros(batch, q.shape[-2], tiles, 2, dtype=torch.int32) if _in_order() else None
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    offsets = [_as(tensor, torch.int32) for tensor in (cu_seqlens_q, cu_seqlens_k)]
    launch(
        "attention_backward_blocks" if blocks else "attention_backward", *map(_operand, (q, k, v, z, dout)),
        *(_as(tensor, torch.float32) for tensor in (lse, dlse, out_scale)), _as(kv_head_map, torch.int32),
        *([*(tensor.contiguous() for tensor in blocks), block] if blocks else offsets),
        dq, dk, dv, dz, delta, stats, sums, turns, scale, left, right, softcap, op="attention",
    )  # fmt: skip
    axes = tuple(range(dout.dim() - 2))
    dsinks = None if delta is None else -((sinks.float().unsqueeze(-1) - lse).exp() * delta)
    if dsinks is not None:
        dsinks = dsinks.masked_fill(lse == -torch.inf, 0.0).sum(-1)
        dsinks = dsinks.sum(0) if dsinks.dim() == 2 else dsinks
    dscale = (dout.float() * z).sum(axes) if needs[5] else None
    dbias = dout.sum(axes, dtype=torch.float32) if needs[6] else None
    return [dq, dk, dv, dsinks, None, dscale, dbias, None, None]
