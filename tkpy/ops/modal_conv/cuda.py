"""modal_conv by the compiled kernels of csrc/kernels/modal_conv: on an sm_90 GPU, or in the emulator.

Whole chunks of 64 samples go through the tensor cores, what is left after them (and a single sample, as in decoding)
through the kernel that takes steps of the recurrence. Where channels are few, a channel's samples are cut into segments
that run at the same time, after a first pass over them that finds the states at their borders.

Signals go in as they are when neighbouring samples lie side by side; others are copied first. Apart from the outputs
only states are allocated: those of the end and of each border of segments.
"""

from __future__ import annotations

import functools

import torch

from tkpy.machine import launch
from tkpy.ops.modal_conv import eager

CHUNK, ROWS, MODES = 64, 16, 32  # as in csrc/kernels/modal_conv/params.h
# CTAs (a warp each) that an SM holds, by the bytes of a sample, S <= 8: by registers, backward by shared memory too
RESIDENT, BACKWARD_RESIDENT = {2: 16, 4: 12}, {2: 8, 4: 4}
FEWEST_TILES, MOST_SEGMENTS = 4, 256
TABLES = 2  # what making a segment's tables costs, in tiles
# What a segment costs whose states a launch before finds: 6 elements for 4, its states twice; backward 13 for 9
TWO_PASSES, TWO_LAUNCHES = 1.6, 1.5


@functools.lru_cache(maxsize=4096)
def segment_tiles_for(units: int, tiles: int, resident: int, two_passes: float = TWO_PASSES) -> int:
    """Tiles of a segment: those of a call that ends first, by the rounds of `resident` warps that its segments take."""
    tiles = max(tiles, 1)
    best, shortest = tiles, float("inf")
    for segments in range(1, max(1, min(tiles // FEWEST_TILES, MOST_SEGMENTS)) + 1):
        each = -(-tiles // segments)
        rounds = -(-units * -(-tiles // each) // resident)
        time = rounds * (each + TABLES) * (1.0 if segments == 1 else two_passes)
        if time < shortest:
            best, shortest = each, time
    return best


def _segment_tiles(u: torch.Tensor, resident: dict[int, int] = RESIDENT, two_passes: float = TWO_PASSES) -> int:
    multiprocessors = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 132
    batch, channels, length = u.shape
    tiles = -(-length // (CHUNK * ROWS))
    return segment_tiles_for(batch * channels, tiles, multiprocessors * resident[u.element_size()], two_passes)


def _signal(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _pairs(x: torch.Tensor | None) -> torch.Tensor | None:
    """Complex numbers as contiguous pairs."""
    return None if x is None else torch.view_as_real(x.resolve_conj().contiguous())


class _Modes:
    """Poles, residues and skip as the kernels take them."""

    def __init__(self, poles: torch.Tensor, residues: torch.Tensor, skip: torch.Tensor | None):
        self.shape = poles.shape
        self.tensors = (_pairs(poles), _pairs(residues), None if skip is None else skip.float().contiguous())

    def states(self, u: torch.Tensor, *outer: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
        return torch.empty(*outer, u.shape[0], *self.shape, dtype=dtype, device=u.device)


def _cut(samples: slice, *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if t is None else t[..., samples] for t in tensors]


def _chunks(modes: _Modes, signals, start, end) -> None:
    """Whole chunks of x, gate, post and out = y post; without out, only the state after them."""
    x = signals[0]
    each = _segment_tiles(x)
    segments = -(-x.shape[-1] // (CHUNK * ROWS * each))
    local = modes.states(x, segments - 1, dtype=torch.complex128) if segments > 1 else None
    launch(
        "modal_conv", *signals, *modes.tensors, *map(_pairs, (start, local, end)), each, op="modal_conv",
    )  # fmt: skip


def forward(u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state):
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    modes, length = _Modes(poles, residues, skip), u.shape[-1]
    nothing = u.new_empty(0, dtype=torch.complex64)
    if not u.numel():
        state = modes.states(u).zero_() if initial_state is None else initial_state
        return y, state if output_final_state else nothing
    u, pre, post = map(_signal, (u, pre_gate, post_gate))
    whole = length - length % CHUNK
    reached = None
    if whole:
        if output_final_state or whole < length:
            reached = modes.states(u, dtype=torch.complex128)
        _chunks(modes, _cut(slice(0, whole), u, pre, post, y), initial_state, reached)
    if whole == length:
        return y, nothing if reached is None else reached.to(torch.complex64)
    state = modes.states(u) if output_final_state else None
    launch(
        "modal_steps", *_cut(slice(whole, length), u, pre, post, y), *modes.tensors,
        None if whole else _pairs(initial_state), _pairs(reached), _pairs(state), op="modal_conv",
    )  # fmt: skip
    return y, nothing if state is None else state


def backward(
    grads, outputs, u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state, *, needs
):
    """One kernel. Only where a state has a gradient that lies within a chunk, what is left after the last whole one (at
    most 63 samples) is eager.py's, after a pass that finds the state before it.
    """
    dy, dstate = grads[0], grads[1] if output_final_state else None
    if dy is None and dstate is None:
        return [None] * 7
    if not u.numel():
        return [None] * 6 + [dstate]
    dy = torch.zeros_like(u) if dy is None else dy
    u, pre, post, dy = map(_signal, (u, pre_gate, post_gate, dy))
    asked = [needs[0], needs[4] and pre is not None, needs[5] and post is not None]
    outs = [torch.empty(u.shape, dtype=u.dtype, device=u.device) if wanted else None for wanted in asked]
    signals, length, modes = (u, pre, post, dy, *outs), u.shape[-1], _Modes(poles, residues, skip)
    found: list[list[torch.Tensor | None]] = []
    if dstate is not None and length % CHUNK:
        whole = length - length % CHUNK
        before = initial_state
        if whole:
            reached = modes.states(u, dtype=torch.complex128)
            _chunks(modes, _cut(slice(0, whole), u, pre, None, None), initial_state, reached)
            before = reached.to(torch.complex64)
        x, gate, behind, cotangent, *parts = _cut(slice(whole, length), *signals)
        args = (x, poles, residues, skip, gate, behind, before, True)
        got = eager.backward([cotangent, dstate], [], *args, needs=[True] * 7)
        for out, grad in zip(parts, (got[0], got[4], got[5]), strict=True):
            if out is not None:
                out.copy_(grad)
        found.append(got[1:4])
        dstate, length = got[6].to(torch.complex64), whole
    if length:
        parameters, dstate = _backward(modes, _cut(slice(0, length), *signals), initial_state, dstate, needs)
        found.append(parameters)
    totals = [sum(parts) for parts in zip(*found, strict=True)] if any(needs[1:4]) else [None] * 3
    return [outs[0], *totals, *outs[1:], dstate]


def _backward(modes: _Modes, signals, start, dend, needs):
    """Writes the signals' gradients; those of poles, residues, skip (shares of segments, added in order), and start."""
    u, pre, post, dy, du, dpre, dpost = signals
    each = _segment_tiles(u, BACKWARD_RESIDENT, TWO_LAUNCHES)
    tiles = -(-u.shape[-1] // (CHUNK * ROWS))
    segments = -(-tiles // each)
    local = modes.states(u, 2, segments, dtype=torch.complex128) if segments > 1 else None
    dstart = modes.states(u, dtype=torch.complex128) if needs[6] and start is not None else None
    shares: list[torch.Tensor | None] = [None] * 3
    if any(needs[1:4]):
        shares = [modes.states(u, segments) for _ in "pr"]
        shares.append(torch.empty(segments, *u.shape[:2], dtype=torch.float32, device=u.device))
    starts = modes.states(u, tiles) if any(needs[1:4]) or dpost is not None else None
    launch(
        "modal_backward", u, pre, dy, post, du, dpre, dpost, *modes.tensors,
        *map(_pairs, (start, dend, starts, local, dstart, *shares[:2])), shares[2], each, op="modal_conv",
    )  # fmt: skip
    return [None if s is None else s.sum((0, 1)) for s in shares], dstart
