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
RESIDENT = {2: 11, 4: 7}  # CTAs (a warp each) that the shared memory of an SM holds, by the bytes of a sample, S <= 8
FEWEST_TILES, MOST_SEGMENTS = 4, 256
TABLES = 2  # what making a segment's tables costs, in tiles
TWO_PASSES = 1.6  # what a segment costs that is read twice: 6 of 4 elements, and its states twice


@functools.lru_cache(maxsize=4096)
def segment_tiles_for(units: int, tiles: int, resident: int) -> int:
    """Tiles of a segment: those of a call that ends first, by the rounds of `resident` warps that its segments take."""
    tiles = max(tiles, 1)
    best, shortest = tiles, float("inf")
    for segments in range(1, max(1, min(tiles // FEWEST_TILES, MOST_SEGMENTS)) + 1):
        each = -(-tiles // segments)
        rounds = -(-units * -(-tiles // each) // resident)
        time = rounds * (each + TABLES) * (1.0 if segments == 1 else TWO_PASSES)
        if time < shortest:
            best, shortest = each, time
    return best


def _segment_tiles(u: torch.Tensor) -> int:
    multiprocessors = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 132
    batch, channels, length = u.shape
    tiles = -(-length // (CHUNK * ROWS))
    return segment_tiles_for(batch * channels, tiles, multiprocessors * RESIDENT[u.element_size()])


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


def _chunks(
    modes: _Modes, x, gate, post, out, *, start=None, end=None, starts=None, second=(None, None), reverse=False
):
    """One pass over whole chunks: out = y post, and for second = (post2, out2) out2 = y post2."""
    each = _segment_tiles(x)
    segments = -(-x.shape[-1] // (CHUNK * ROWS * each))
    local = modes.states(x, segments - 1, dtype=torch.complex128) if segments > 1 else None
    launch(
        "modal_conv", x, gate, post, second[0], out, second[1], *modes.tensors,
        *map(_pairs, (start, local, end, starts)), each, reverse, op="modal_conv",
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
        _chunks(modes, *_cut(slice(0, whole), u, pre, post, y), start=initial_state, end=reached)
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
    """The forward recurrence again where states or the output before its gate are needed, the adjoint one from the end,
    then the parameters' gradients from both. What is left after the last whole chunk is eager.py's: at most 63 samples.
    """
    dy, dstate = grads[0], grads[1] if output_final_state else None
    if dy is None and dstate is None:
        return [None] * 7
    if not u.numel():
        return [None] * 6 + [dstate]
    dy = torch.zeros_like(u) if dy is None else dy
    u, pre, post, dy = map(_signal, (u, pre_gate, post_gate, dy))
    whole, length = u.shape[-1] - u.shape[-1] % CHUNK, u.shape[-1]
    asked = [needs[0], needs[4] and pre is not None, needs[5] and post is not None]
    outs = [torch.empty(u.shape, dtype=u.dtype, device=u.device) if wanted else None for wanted in asked]
    parameters, modes = any(needs[1:4]), _Modes(poles, residues, skip)
    body, tail = (_cut(slice(*at), u, pre, post, dy, *outs) for at in ((0, whole), (whole, length)))
    found: list[list[torch.Tensor | None]] = []

    reached, starts = None, None
    if whole and (parameters or asked[2] or whole < length):
        reached = modes.states(u, dtype=torch.complex128) if whole < length else None
        starts = modes.states(u, -(-whole // (CHUNK * ROWS))) if parameters else None
        x, gate, _, cotangent, _, _, dpost = body
        _chunks(modes, x, gate, cotangent if asked[2] else None, dpost, start=initial_state, end=reached, starts=starts)
    if whole < length:
        state = initial_state if reached is None else reached.to(torch.complex64)
        x, gate, behind, cotangent, *parts = tail
        args = (x, poles, residues, skip, gate, behind, state, True)
        got = eager.backward([cotangent, dstate], [], *args, needs=[True] * 7)
        for out, grad in zip(parts, (got[0], got[4], got[5]), strict=True):
            if out is not None:
                out.copy_(grad)
        found.append(got[1:4])
        dstate = got[6].to(torch.complex64)
    if whole:
        x, gate, behind, cotangent, du, dpre, _ = body
        ends = None if starts is None else torch.empty_like(starts)
        end = modes.states(u, dtype=torch.complex128) if needs[6] and initial_state is not None else None
        pairs = [(gate, du), (x, dpre)] if du is not None else [(x, dpre), (None, None)]
        if dpre is None:
            pairs[1] = (None, None)
        if du is not None or dpre is not None or end is not None or ends is not None:
            _chunks(
                modes, cotangent, behind, *pairs[0], second=pairs[1], start=dstate, end=end, starts=ends, reverse=True
            )
        dstate = end
        if starts is not None:
            found.append(_parameters(modes, x, gate, cotangent, behind, starts, ends))
    totals = [sum(parts) for parts in zip(*found, strict=True)] if parameters else [None] * 3
    return [outs[0], *totals, *outs[1:], dstate]


def _parameters(modes: _Modes, u, pre, dy, post, starts, ends) -> list[torch.Tensor | None]:
    """The gradients of poles, residues and skip: shares of tiles, added in their order."""
    batch, channels, _ = u.shape
    tiles, groups = batch * starts.shape[0], max(1, -(-modes.shape[1] // 8))
    multiprocessors = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 132
    each = max(FEWEST_TILES, -(-tiles * channels * groups // (4 * multiprocessors * 8)))
    shares = -(-tiles // each)
    dpoles, dresidues = (torch.empty(shares, *modes.shape, dtype=torch.complex64, device=u.device) for _ in "pr")
    dskip = torch.empty(shares, channels, dtype=torch.float32, device=u.device)
    launch(
        "modal_gradient", u, pre, dy, post, *modes.tensors[:2], *map(_pairs, (starts, ends, dpoles, dresidues)), dskip,
        each, op="modal_conv",
    )  # fmt: skip
    return [t.sum(0) for t in (dpoles, dresidues, dskip)]
