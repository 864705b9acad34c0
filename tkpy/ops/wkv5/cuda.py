"""wkv5 by the compiled kernels of csrc/kernels/wkv5: on an sm_90 GPU, or in the emulator.

Sequences are cut into segments that run side by side where there are too few of them and of heads to fill the GPU;
their number follows from shapes alone, offsets stay on the device. Tensors go in as they are when TMA can take their
strides (channels contiguous, all other strides and the address in multiples of 16 bytes); others are copied first.
Decay, bonus and states go in as float32, offsets as int32.
"""

from __future__ import annotations

import functools

import torch

from tkpy.machine import launch

CHUNK = 16  # as in csrc/kernels/wkv5/params.h
OVERHEAD = 6  # what beginning and ending a CTA costs, in chunks
RESIDENT = {32: 8, 64: 4, 128: 1}  # CTAs of the forward on a multiprocessor, by the width of the kernel


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
    if tensor is None:
        return None
    tensor = tensor.to(dtype).contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@functools.lru_cache(maxsize=4096)
def segment_for(sequences: int, heads: int, length: int, size: int, multiprocessors: int) -> int:
    """Tokens of a segment, of `sequences` of `length` tokens each: rounds of CTAs, each as long as its chunks. More
    than one segment a sequence costs another pass over k and v, which is half as long."""
    chunks = max(1, -(-length // CHUNK))
    resident = multiprocessors * RESIDENT[next(width for width in RESIDENT if width >= size)]

    def time(count: int) -> float:
        rounds = -(-sequences * count * heads // resident)
        passes = 1.0 if count == 1 else 1.7
        return passes * rounds * (-(-chunks // count) + OVERHEAD) + (0.1 * count + OVERHEAD if count > 1 else 0)

    counts = (-(-chunks // -(-chunks // n)) for n in range(1, min(chunks, 256) + 1))
    return CHUNK * -(-chunks // min(counts, key=time))


def _plan(r: torch.Tensor, cu_seqlens: torch.Tensor | None) -> tuple[int, int, int]:
    """(sequences, tokens of a segment, slots of segments)."""
    batch, length, heads, size = r.shape
    count = torch.cuda.get_device_properties(r.device).multi_processor_count if r.is_cuda else 132
    if cu_seqlens is None:
        segment = segment_for(batch, heads, length, size, count)
        return batch, segment, batch * -(-length // segment)
    sequences = cu_seqlens.shape[0] - 1
    # Lengths are not known here: at least one segment of what a sequence has on average.
    segment = segment_for(sequences, heads, -(-length // sequences), size, count)
    return sequences, segment, length // segment + sequences


def _states(r: torch.Tensor, count: int) -> torch.Tensor:
    return r.new_empty(count, r.shape[2], r.shape[3], r.shape[3], dtype=torch.float32)


def _nothing(r, initial_state, sequences):
    """The states after no tokens."""
    return torch.zeros_like(_states(r, sequences)) if initial_state is None else initial_state.float()


def forward(r, k, v, w, u, initial_state, cu_seqlens, output_final_state):
    y = torch.empty_like(r, memory_format=torch.contiguous_format)
    count = r.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if not r.numel():
        return y, _nothing(r, initial_state, count) if output_final_state else _states(r, 0).flatten()
    sequences, segment, slots = _plan(r, cu_seqlens)
    final = _states(r, sequences) if output_final_state else None
    states = _states(r, slots) if slots > sequences or cu_seqlens is not None else None
    launch(
        "wkv5", *map(_operand, (r, k, v)), *(_as(x, torch.float32) for x in (w, u, initial_state)),
        _as(cu_seqlens, torch.int32), y, final, states, segment, op="wkv5",
    )  # fmt: skip
    return y, r.new_empty(0, dtype=torch.float32) if final is None else final


def backward(grads, outputs, r, k, v, w, u, initial_state, cu_seqlens, output_final_state, *, needs):
    gy, g_final = grads
    g_final = g_final if output_final_state else None
    if not r.numel():
        return [None] * 5 + [g_final, None]
    sequences, segment, slots = _plan(r, cu_seqlens)
    gy = torch.zeros_like(r) if gy is None else gy
    gr, gk, gv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (r, k, v))
    g_initial = _states(r, sequences) if initial_state is not None else None
    # Of packed sequences some slots stay empty.
    make = torch.empty if cu_seqlens is None else torch.zeros
    shares = make(3, slots, *r.shape[2:], dtype=torch.float32, device=r.device)
    states: list[torch.Tensor | None] = [None] * 3
    if slots > sequences or cu_seqlens is not None:
        states = [_states(r, slots) for _ in range(3)]
    launch(
        "wkv5_backward", *map(_operand, (r, k, v)), *(_as(x, torch.float32) for x in (w, u, initial_state)),
        _as(cu_seqlens, torch.int32), _operand(gy), _as(g_final, torch.float32), gr, gk, gv, g_initial,
        shares[:2], shares[2], *states, segment, op="wkv5",
    )  # fmt: skip
    # ln w = -exp(w_raw), so d(ln w) / d(w_raw) is that too; what a decay of 0 multiplies is 0.
    rate = w.float().exp().clamp_max(1e4)
    return [gr, gk, gv, -rate * shares[:2].sum((0, 1)), shares[2].sum(0), g_initial, None]
