"""hyena_mixer by the compiled kernels of csrc/kernels/hyena_mixer: on an sm_90 GPU, or in the emulator.

z goes in as it is where its channels lie side by side; weight, bias as z's dtype or float32. The gradients apply the
short filters again, by whatever serves short_conv here, and are modal_conv's kernels' and theirs.
"""

from __future__ import annotations

import torch

from tkpy import registry
from tkpy.machine import launch
from tkpy.ops.hyena_mixer import eager
from tkpy.ops.modal_conv import cuda as modal
from tkpy.ops.modal_conv.cuda import segment_tiles_for
from tkpy.ops.rows import multiprocessors, parameter

SAMPLES = 1024  # of a tile, as in csrc/kernels/hyena_mixer/params.h
# The most modes with which two CTAs fit into a multiprocessor's shared memory, by the bytes of a sample
MODES_OF_TWO = {2: 8, 4: 16}


def _pairs(x: torch.Tensor | None) -> torch.Tensor | None:
    """Complex numbers as contiguous pairs."""
    return None if x is None else torch.view_as_real(x.resolve_conj().contiguous())


def _segment_tiles(z: torch.Tensor, tiles: int, modes: int) -> int:
    """A CTA has the channels of 16 bytes; two of few modes are on a multiprocessor."""
    each = 16 // z.element_size()
    resident = 2 if modes <= MODES_OF_TWO[z.element_size()] else 1
    return segment_tiles_for(z.shape[0] * -(-z.shape[2] // (3 * each)), tiles, multiprocessors(z) * resident)


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
    each = _segment_tiles(z, tiles, modes)
    segments = -(-tiles // each)
    local = z.new_empty(segments - 1, batch, width, modes, dtype=torch.complex128) if segments > 1 else None
    launch(
        "hyena_mixer", z if z.stride(2) == 1 else z.contiguous(), parameter(weight, z), parameter(bias, z),
        _pairs(poles), _pairs(residues), None if skip is None else skip.float().contiguous(),
        None if fir_state is None else fir_state.contiguous(), _pairs(initial_state), y,
        *((inputs, _pairs(end)) if output_final_state else (None, None)), _pairs(local), groups, each, op="hyena_mixer",
    )  # fmt: skip
    return y, inputs, end


def backward(grads, outputs, *args, needs):
    z, weight, bias, *_ = args
    short = registry.get("short_conv")
    with torch.no_grad():
        served = short.resolve(short.call(z.mT, weight, bias, None, None, "", False))
    return eager.backward_by(short.module(served), modal, grads, *args, needs=needs)
