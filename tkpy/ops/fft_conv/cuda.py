"""fft_conv by the compiled kernels of csrc/kernels/fft_conv: on an sm_90 GPU, or in the emulator.

The spectrum of the filters is made once a call (or kept, spectra.py), in float32; gradients.py has the backward, whose
sums over the batch are one more kernel's. The order of all sums follows from shapes: the same call gives the same bits.

Rows longer than a CTA holds go through an outer factor in global memory (long.cu), as do the spectrum of their filters
and the filters' gradients (long_filter.cu).
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.fft_conv import eager, gradients
from tkpy.ops.fft_conv.gradients import multiprocessors, reach, shares_for
from tkpy.ops.fft_conv.spectra import kept
from tkpy.ops.fft_conv.tables import PLANS, outer_matrices, tables

INNER = (2048, 4096, 16384)  # of long rows, and
OUTER = (16, 32, 64, 128, 256)  # their first factors
IN_REGISTERS = 4096  # as in params.h


def is_long(length: int) -> bool:
    """Does no CTA hold such a row?"""
    return length > max(PLANS)


def points_for(length: int) -> int:
    """The least plan: circles of twice as many samples hold all lags between two samples of a row."""
    return min(points for points in PLANS if points >= length)


def factors_for(length: int) -> tuple[int, int]:
    """Outer and inner factor of a long row: the fewest points, of these the smallest product with the outer matrix."""
    plans = ((outer, inner) for outer in OUTER for inner in INNER if outer * inner >= length)
    return min(plans, key=lambda plan: (plan[0] * plan[1], plan[0]))


def _rows(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None or x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _spectrum(u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None) -> torch.Tensor:
    """[H, points, 2], of long rows [H, outer, inner, 2]."""
    used, channels = reach(u, k, k_reverse), u.shape[1]
    factors = factors_for(u.shape[-1]) if is_long(u.shape[-1]) else (points_for(u.shape[-1]),)

    def make() -> torch.Tensor:
        spectrum = torch.empty(channels, *factors, 2, dtype=torch.float32, device=u.device)
        taps = [None if t is None else t.float().contiguous() for t in (k, k_reverse)]
        if len(factors) == 1:
            launch("fft_conv_spectrum", *taps, *used, spectrum, tables(*factors, u.device), op="fft_conv")
        else:
            work, there = _work(u, 1, channels, factors), outer_matrices(factors[0], u.device, False)[0]
            constants = (there, tables(factors[1], u.device, 0.0))
            launch("fft_conv_long_spectrum", *taps, *used, work, spectrum, *constants, op="fft_conv")
        return spectrum

    return kept([k] if k_reverse is None else [k, k_reverse], (*factors, *used), make)


def _work(u: torch.Tensor, rows: int, channels: int, factors: tuple[int, ...]) -> torch.Tensor:
    outer, inner = factors
    return torch.empty(rows, channels, outer, 2, inner, dtype=torch.float32, device=u.device)


def _convolve(u, pre, post, skip, spectrum, *, correlate=False, post2=None, wanted=(True, False)):
    """[post (conv(pre u) + skip pre u), the same with post2], those that are wanted."""
    outs = [torch.empty(u.shape, dtype=u.dtype, device=u.device) if want else None for want in wanted]
    gates = [post, post2]
    if not wanted[0]:
        outs.reverse()
        gates.reverse()
    skip = None if skip is None else skip.float().contiguous()
    constants: tuple[torch.Tensor, ...]
    if spectrum.dim() == 3:
        constants = (tables(spectrum.shape[1], u.device),)
        launch("fft_conv", u, pre, *gates, *outs, skip, spectrum, *constants, correlate, op="fft_conv")
    else:
        _, outer, inner, _ = spectrum.shape
        work = _work(u, u.shape[0], u.shape[1], (outer, inner))
        constants = (*outer_matrices(outer, u.device), tables(inner, u.device, 0.0))
        launch("fft_conv_long", u, pre, *gates, *outs, skip, spectrum, work, *constants, correlate, op="fft_conv")
    return outs if wanted[0] else outs[::-1]


def forward(u, k, k_reverse, skip, pre_gate, post_gate):
    if u.numel() == 0:
        return u.new_empty(u.shape)
    u, pre_gate, post_gate = map(_rows, (u, pre_gate, post_gate))
    return _convolve(u, pre_gate, post_gate, skip, _spectrum(u, k, k_reverse))[0]


def _filters(u, pre, dy, post, used, used_reverse):
    """[H, used] and [H, used_reverse]: dy post correlated with u pre, over the batch."""
    batch, channels, length = u.shape
    points, shares = points_for(length), shares_for(batch, channels, multiprocessors(u.device))

    def floats(*shape):
        return torch.empty(shares, channels, *shape, dtype=torch.float32, device=u.device)

    dk, dk_reverse = floats(used), floats(used_reverse)
    scratch = floats(4 * points) if points > IN_REGISTERS else None
    launch(
        "fft_conv_gradient", u, pre, dy, post, dk, dk_reverse, scratch, points, tables(points, u.device), op="fft_conv"
    )
    return dk.sum(0), dk_reverse.sum(0)


def _long_filters(u, pre, dy, post, used, used_reverse):
    """The same for long rows, a block of channels at a time, whose work is there at the same time."""
    batch, channels, length = u.shape
    outer, inner = factors_for(length)
    there, (_, back) = outer_matrices(outer, u.device)[0], outer_matrices(outer, u.device, False)
    dk, dk_reverse = (torch.empty(channels, n, dtype=torch.float32, device=u.device) for n in (used, used_reverse))
    step = max(1, eager.BLOCK_ELSEWHERE // (batch * outer * inner))
    for block in (slice(start, start + step) for start in range(0, channels, step)):
        works = []
        for rows, gate in ((u[:, block], pre), (dy[:, block], post)):
            works.append(_work(u, batch, rows.shape[1], (outer, inner)))
            part = None if gate is None else gate[:, block]
            launch("fft_conv_long_rows", rows, part, works[-1], there, op="fft_conv")
        count = works[0].shape[1]
        sums = _work(u, shares_for(batch, count * outer, multiprocessors(u.device)), count, (outer, inner))
        scratch = torch.empty(2, *sums.shape, dtype=sums.dtype, device=u.device) if inner > IN_REGISTERS else None
        launch("fft_conv_long_gradient", *works, sums, scratch, tables(inner, u.device, 0.0), op="fft_conv")
        total = sums if len(sums) == 1 else sums.sum(0, keepdim=True)
        launch("fft_conv_long_taps", total, dk[block], dk_reverse[block], back, op="fft_conv")
    return dk, dk_reverse


def backward(grads, outputs, u, k, k_reverse, skip, pre_gate, post_gate, *, needs):
    (dy,) = grads
    if dy is None or u.numel() == 0:
        return [None] * 6
    u, dy, pre_gate, post_gate = map(_rows, (u, dy, pre_gate, post_gate))
    filters = _long_filters if is_long(u.shape[-1]) else _filters
    return gradients.backward(
        _spectrum, _convolve, filters, dy, u, k, k_reverse, skip, pre_gate, post_gate, needs
    )  # fmt: skip
