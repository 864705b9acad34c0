"""What the backends `cuda` and `emulator` of the ops on rows share: tensors as matrices, calls of csrc/kernels/rows.

Rows go in as they are when their elements are contiguous and all rows are one pitch apart; others are copied first.
Parameters go in as x's dtype or float32, which holds every other one.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tkpy.machine import launch
from tkpy.ops import residual as stream

THREADS, ELEMENTS, MOST_BACKWARD = 128, 16, 256  # as in csrc/kernels/rows/params.h
FEWEST_ROWS = 8  # of a team: shares are few beside them
RESIDENT = 512  # threads of the backward that a multiprocessor is given


def matrix(x: Tensor) -> Tensor:
    """(rows, width) with contiguous rows."""
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    fits = (flat.stride(1) == 1 or flat.shape[1] == 1) and (flat.stride(0) >= flat.shape[1] or flat.shape[0] <= 1)
    return flat if fits else flat.contiguous()


def optional(x: Tensor | None) -> Tensor | None:
    """`matrix` of what may be absent."""
    return None if x is None else matrix(x)


def parameter(p: Tensor | None, x: Tensor) -> Tensor | None:
    """A vector of x's dtype or float32."""
    return None if p is None else (p if p.dtype in (x.dtype, torch.float32) else p.float()).contiguous()


def multiprocessors(x: Tensor) -> int:
    """Of the device where x is; 132 for the emulator."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 132


@functools.lru_cache(maxsize=4096)
def shares(rows: int, width: int, count: int) -> int:
    """CTAs of the backward, each of which leaves its share of the parameters' gradients."""
    wanted = -(-width // ELEMENTS)
    if wanted > 32:
        block, teams = min(-(-wanted // 32) * 32, MOST_BACKWARD), 1
    else:
        block, teams = THREADS, THREADS // (1 << max(wanted - 1, 0).bit_length())
    return min(-(-rows // (FEWEST_ROWS * teams)), count * max(1, RESIDENT // block))


def norm_forward(op, x, weight, bias, residual, seed, eps, inside, dropout):
    """(y, z, mean, rstd); z is empty where it is x."""
    y, z = x.new_empty(x.shape), stream.fake_stream(x, residual, dropout)
    joined, layer = stream.joins(residual, dropout), op == "layer_norm"
    mean, rstd = (x.new_zeros(*x.shape[:-1], 1, dtype=torch.float32) if layer else None for _ in range(2))
    if x.numel():
        launch(
            "norm_forward", matrix(x), optional(residual), parameter(weight, x), parameter(bias, x), seed, matrix(y),
            matrix(z) if joined else None, mean, rstd, eps, inside, dropout, op=op,
        )  # fmt: skip
    return y, z, mean, rstd


def norm_backward(
    op, dy, dz, z, x, weight, bias, residual, seed, statistics, eps, inside, dropout, needs_weight, needs_bias
):
    """(dx, dweight, dbias, dresidual)."""
    dz = stream.incoming(dz, residual, dropout)
    if (dy is None and dz is None) or not x.numel():
        return None, None, None, None
    if dy is None:
        dx, dresidual = stream.gradients(dz, x, residual, seed, dropout)
        return dx, None, None, dresidual
    source = matrix(z if stream.joins(residual, dropout) else x)
    rows, width = source.shape
    dx = x.new_empty(x.shape)
    dresidual = None if residual is None else residual.new_empty(x.shape)
    partial = x.new_empty(
        1 if statistics is None else 2, shares(rows, width, multiprocessors(x)), width, dtype=torch.float32
    )
    dweight, dbias = (
        p.new_empty(width) if wanted else None for p, wanted in ((weight, needs_weight), (bias, needs_bias))
    )
    launch(
        "norm_backward", matrix(dy), source, optional(dz), parameter(weight, x), *(statistics or (None, None)), seed,
        matrix(dx), optional(dresidual), partial, dweight, dbias, eps, inside, dropout, op=op,
    )  # fmt: skip
    return dx, dweight, dbias, dresidual
