"""hyena_mixer by the compiled kernels of csrc/kernels/hyena_mixer: on an sm_90 GPU, or in the emulator.

z goes in as it is where its channels lie side by side; weight, bias as z's dtype or float32. So does y's gradient.
"""

from __future__ import annotations

import torch

from tkpy import registry
from tkpy.machine import launch
from tkpy.ops.hyena_mixer import eager
from tkpy.ops.modal_conv import cuda as modal
from tkpy.ops.modal_conv.cuda import CHUNK, TWO_LAUNCHES, TWO_PASSES, segment_tiles_for
from tkpy.ops.rows import multiprocessors, parameter

SAMPLES, BACKWARD_MODES = 1024, 8  # of a tile; the most: as in csrc/kernels/hyena_mixer
# The most modes with which two CTAs fit into a multiprocessor's shared memory, by the bytes of a sample
MODES_OF_TWO = {2: 8, 4: 16}


def _pairs(x: torch.Tensor | None) -> torch.Tensor | None:
    """Complex numbers as contiguous pairs."""
    return None if x is None else torch.view_as_real(x.resolve_conj().contiguous())


def _near(x: torch.Tensor) -> torch.Tensor:
    """With channels side by side."""
    return x if x.stride(2) == 1 else x.contiguous()


def _segment_tiles(z: torch.Tensor, tiles: int, resident: int, two_passes: float = TWO_PASSES) -> int:
    """A CTA has the channels of 16 bytes, and a multiprocessor `resident` of them."""
    blocks = -(-z.shape[2] * z.element_size() // (3 * 16))
    return segment_tiles_for(z.shape[0] * blocks, tiles, multiprocessors(z) * resident, two_passes)


def forward(z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state):
    args = (z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state)
    if not z.numel():
        return eager.forward(*args)
    (batch, length, channels), (width, modes) = z.shape, poles.shape
    y = torch.empty(batch, length, width, dtype=z.dtype, device=z.device)
    inputs, end = z.new_empty(0), z.new_empty(0, dtype=torch.complex64)
    if output_final_state:
        inputs = z.new_empty(batch, channels, weight.shape[1] - 1)
        end = z.new_empty(batch, width, modes, dtype=torch.complex64)
    tiles = -(-length // SAMPLES)
    each = _segment_tiles(z, tiles, 2 if modes <= MODES_OF_TWO[z.element_size()] else 1)
    segments = -(-tiles // each)
    local = z.new_empty(segments - 1, batch, width, modes, dtype=torch.complex128) if segments > 1 else None
    launch(
        "hyena_mixer", _near(z), parameter(weight, z), parameter(bias, z),
        _pairs(poles), _pairs(residues), None if skip is None else skip.float().contiguous(),
        None if fir_state is None else fir_state.contiguous(), _pairs(initial_state), y,
        *((inputs, _pairs(end)) if output_final_state else (None, None)), _pairs(local), groups, each, op="hyena_mixer",
    )  # fmt: skip
    return y, inputs, end


def backward(grads, outputs, *args, needs):
    """One kernel, and sums of shares, for up to 8 modes. It takes the last state's gradient at the end of a chunk only:
    where that lies within one, what is left after the last whole chunk goes back first, by itself.
    """
    z, poles, final = args[0], args[3], args[-1]
    dy, dinputs, dstate = grads if final else (grads[0], None, None)
    whole = z.shape[1] if dstate is None else z.shape[1] - z.shape[1] % CHUNK
    if not whole or not z.numel() or poles.shape[1] > BACKWARD_MODES:
        return _by_two_ops([dy, dinputs, dstate], *args, needs=needs)
    dy = z.new_zeros(*z.shape[:2], poles.shape[0]) if dy is None else dy
    one = _backward if whole == z.shape[1] else _in_two_pieces
    return one(dy, dinputs, dstate, *args[:9], needs=needs)


def _by_two_ops(grads, *args, needs):
    short = registry.get("short_conv")
    with torch.no_grad():
        served = short.resolve(short.call(args[0].mT, args[1], args[2], None, None, "", False))
    return eager.backward_by(short.module(served), modal, grads, *args, needs=needs)


def _in_two_pieces(
    dy, dinputs, dstate, z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, *, needs
):  # fmt: skip
    """At most 63 samples by the two ops; the states before them are the forward's of the whole chunks, found again."""
    whole = z.shape[1] - z.shape[1] % CHUNK
    # Sums of both pieces are rounded once.
    given = (weight.float(), None if bias is None else bias.float(), poles, residues, skip)
    _, inputs, state = forward(z[:, :whole], *given, fir_state, initial_state, groups, True)
    last = _by_two_ops(
        [dy[:, whole:], dinputs, dstate], z[:, whole:], *given, inputs, state, groups, True,
        needs=[True, *needs[1:6], True, True],
    )  # fmt: skip
    first = _backward(
        dy[:, :whole], last[6].to(z.dtype), last[7].to(torch.complex64), z[:, :whole], *given, fir_state, initial_state,
        groups, needs=needs,
    )  # fmt: skip
    sums = [x + y if needed else None for x, y, needed in zip(first[1:6], last[1:6], needs[1:6], strict=True)]
    return [torch.cat([first[0], last[0]], 1) if needs[0] else None, *sums, *first[6:]]


def _backward(
    dy, dinputs, dstate, z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, *, needs
):  # fmt: skip
    (batch, length, channels), (width, modes), taps = z.shape, poles.shape, weight.shape[1]
    tiles = -(-length // SAMPLES)
    each = _segment_tiles(z, tiles, 1, TWO_LAUNCHES)
    segments = -(-tiles // each)

    def states(*outer, dtype=torch.complex64):
        return z.new_empty(*outer, batch, width, modes, dtype=dtype)

    def sums(*shape):
        return z.new_empty(segments, batch, *shape, dtype=torch.float32)

    dz, borders = z.new_empty(z.shape), z.new_empty(2, segments, batch, channels, taps - 1, dtype=torch.float32)
    local = states(2, segments, dtype=torch.complex128) if segments > 1 else None
    dstart = states(dtype=torch.complex128) if needs[7] and initial_state is not None else None
    shares = [states(segments), states(segments), sums(width)] if any(needs[3:6]) else [None] * 3
    filters = needs[1] or needs[2]
    filter_shares = [sums(channels * n).view(1, segments * batch, -1) if filters else None for n in (taps, 1)]
    dweight = weight.new_empty(weight.shape) if needs[1] else None
    dbias = bias.new_empty(bias.shape) if needs[2] else None
    launch(
        "hyena_mixer_backward", _near(z), parameter(weight, z), parameter(bias, z), _pairs(poles), _pairs(residues),
        None if skip is None else skip.float().contiguous(), None if fir_state is None else fir_state.contiguous(),
        _pairs(initial_state), _near(dy), None if dinputs is None else dinputs.contiguous(), _pairs(dstate), dz,
        borders, *map(_pairs, (states(tiles), local, dstart, *shares[:2])), shares[2], *filter_shares, dweight, dbias,
        groups, each, op="hyena_mixer",
    )  # fmt: skip
    if segments > 1 and taps > 1:  # dz of a segment's last samples has a share of the next one's
        first = SAMPLES * each * torch.arange(1, segments, device=z.device)
        rows = first[:, None] + torch.arange(1 - taps, 0, device=z.device)
        dz[:, rows] = (borders[0, 1:] + borders[1, :-1]).permute(1, 0, 3, 2).to(z.dtype)
    dpoles, dresidues, dskip = (None if share is None else share.sum((0, 1)) for share in shares)
    dfir = borders[0, 0].to(z.dtype) if needs[6] and fir_state is not None else None
    return [dz, dweight, dbias, dpoles, dresidues, dskip, dfir, dstart]
