"""attention_decode by the compiled kernels of csrc/kernels/attention_decode: on an sm_90 GPU, or in the emulator.

The number of splits follows from shapes alone: lengths stay on the device, and a split without keys ends at once.
Tensors go in as they are when 16-byte copies can take their strides; others are copied first. Sinks go in as float32,
lengths and pages as int32.
"""

from __future__ import annotations

import functools

import torch

from tkpy.machine import launch

ROWS, WARPS, MOST_SPLITS = 16, 4, 128  # as in csrc/kernels/attention_decode/params.h
OVERHEAD = 4  # what beginning and ending a CTA costs, in rounds of its warps' tiles


def _fits(tensor: torch.Tensor) -> bool:
    if tensor.data_ptr() % 16 or tensor.stride(-1) != 1:
        return False
    outer = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return all(size == 1 or stride % 8 == 0 for size, stride in outer)


def _operand(tensor: torch.Tensor) -> torch.Tensor:
    if _fits(tensor):
        return tensor
    copy = tensor.contiguous()
    return copy if _fits(copy) else copy.clone()  # a view into the middle of something


def _as(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


@functools.lru_cache(maxsize=4096)
def splits_for(units: int, keys: int, width: int, multiprocessors: int, rows: int = ROWS) -> int:
    """The number of splits that ends first, of `keys` keys for each of `units` CTAs: waves times rounds of a CTA. With
    16 keys for each of its `rows`, a split's share, which goes out and comes back in float32, is an eighth of what it
    reads at most."""
    resident = multiprocessors * (2 if width <= 64 else 1)
    rounds = -(-keys // (WARPS * (32 if width <= 128 else 16)))

    def time(splits: int) -> int:
        return -(-units * splits // resident) * (-(-rounds // splits) + OVERHEAD)

    most = min(rounds, MOST_SPLITS, keys // (16 * rows))
    return min(range(1, max(1, most) + 1), key=time)


def _splits(q: torch.Tensor, k_cache: torch.Tensor, block_table: torch.Tensor | None, mapped: bool) -> int:
    batch, seq_q, heads, width = q.shape
    kv_heads = heads if mapped else k_cache.shape[2]
    units = batch * kv_heads * -(-(heads // kv_heads * seq_q) // ROWS)
    keys = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    count = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 132
    return splits_for(units, keys, width, count, min(ROWS, heads // kv_heads * seq_q))


def forward(
    q, k_cache, v_cache, seqlens, block_table, starts, sinks, kv_head_map, scale, left, right, softcap, num_splits
):
    q, k_cache, v_cache = map(_operand, (q, k_cache, v_cache))
    out = q.new_empty(*q.shape[:-1], v_cache.shape[-1])
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    if not out.numel():
        return out, lse
    splits = num_splits or _splits(q, k_cache, block_table, kv_head_map is not None)
    parts = (None, None)
    if splits > 1:
        parts = tuple(t.new_empty(splits, *t.shape, dtype=torch.float32) for t in (out, lse))
    launch(
        "attention_decode", q, k_cache, v_cache, out, lse, _as(seqlens, torch.int32), *parts,
        _as(block_table, torch.int32), _as(starts, torch.int32), _as(sinks, torch.float32),
        _as(kv_head_map, torch.int32), scale, left, right, softcap, op="attention_decode",
    )  # fmt: skip
    return out, lse
