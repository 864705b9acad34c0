"""Constants of the compiled fft_conv: DFT matrices as fragments of mma.sync in two bfloat16 terms, twiddle factors.

The order is that of `Tables` in csrc/kernels/fft_conv/params.h; transform.cuh has the mathematics. All is computed in
float64.
"""

from __future__ import annotations

import functools
import math

import torch

#: Factors by the number of complex points, as in params.h.
PLANS = {
    256: (16, 1, 16), 1024: (16, 8, 8), 2048: (16, 8, 16), 4096: (16, 16, 16), 8192: (32, 16, 16), 16384: (32, 32, 16),
}  # fmt: skip


def roots_of_unity(rows: torch.Tensor, cols: torch.Tensor, period: int) -> torch.Tensor:
    """exp(-2 pi i rows cols / period), complex128."""
    return torch.polar(torch.ones(1, dtype=torch.float64), -2 * math.pi / period * torch.outer(rows, cols))


def indices(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float64)


def _real(matrix: torch.Tensor) -> torch.Tensor:
    """[re -im; im re] of a complex matrix, rows and columns by eights: 8 real parts, 8 imaginary parts, .."""
    n, m = matrix.shape
    blocks = torch.stack([torch.stack([matrix.real, -matrix.imag]), torch.stack([matrix.imag, matrix.real])])
    return blocks.view(2, 2, n // 8, 8, m // 8, 8).permute(2, 0, 3, 4, 1, 5).reshape(2 * n, 2 * m)


def _of_real_input(matrix: torch.Tensor) -> torch.Tensor:
    """[re; im] of a complex matrix, rows by eights."""
    n, m = matrix.shape
    return torch.stack([matrix.real, matrix.imag]).view(2, n // 8, 8, m).transpose(0, 1).reshape(2 * n, m)


def two_terms(x: torch.Tensor) -> torch.Tensor:
    """(2, ..) bfloat16: x rounded, and what that left, rounded."""
    high = x.bfloat16()
    return torch.stack([high, (x - high.double()).bfloat16()])


def _left(matrix: torch.Tensor) -> torch.Tensor:
    """Fragments of a left operand (PTX ISA, mma.m16n8k16): [row tile][step][term][lane][register][pair]."""
    rows, depth = matrix.shape
    parts = two_terms(matrix).view(
        2, rows // 16, 2, 8, depth // 16, 2, 4, 2
    )  # term, tile, half, g, step, half, t, pair
    return parts.permute(1, 4, 0, 3, 6, 5, 2, 7).flatten()


def _right(matrix: torch.Tensor) -> torch.Tensor:
    """Fragments of a right operand, depth x columns: [step][8 columns][lane][term][register][pair]."""
    depth, cols = matrix.shape
    parts = two_terms(matrix).view(2, depth // 16, 2, 4, 2, cols // 8, 8)  # term, step, half, t, pair, tile, g
    return parts.permute(1, 5, 6, 3, 0, 2, 4).flatten()


def _numbers(waves: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(waves).float().flatten()


@functools.lru_cache(maxsize=64)
def tables(points: int, device: torch.device, shift: float = 0.25) -> torch.Tensor:
    """One buffer of int32 on `device`: values at the frequencies j + shift."""
    n1, n2, n3 = PLANS[points]
    shifted = indices(n1) + shift
    first = roots_of_unity(shifted, indices(n1), n1)
    second, third = roots_of_unity(indices(n2), indices(n2), n2), roots_of_unity(indices(n3), indices(n3), n3)
    parts = [_left(_of_real_input(first)), _left(_of_real_input(first).T), _left(_real(first)), _left(_real(first).T)]
    if n2 > 1:
        parts.append(_left(_real(second)))
    parts += [
        _right(_real(third).T),
        _numbers(roots_of_unity(shifted, indices(n2) * n3, points)),
        _numbers(roots_of_unity(shifted, indices(n3), points)),
        _numbers(roots_of_unity(indices(n2), indices(n3), n2 * n3)),
    ]
    return torch.cat([part.view(torch.int32) for part in parts]).to(device)


@functools.lru_cache(maxsize=64)
def outer_matrices(outer: int, device: torch.device, real: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The first factor of a long row, from real samples and back to them (csrc/kernels/fft_conv/long.cu); of a filter,
    from complex ones (long_filter.cu)."""
    waves = roots_of_unity(indices(outer) + 0.25, indices(outer), outer)
    matrix = _of_real_input(waves) if real else _real(waves)
    there, back = (_left(m).view(torch.int32).to(device) for m in (matrix, matrix.T))
    return there, back
