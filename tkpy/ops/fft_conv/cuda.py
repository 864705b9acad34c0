"""fft_conv by the compiled kernels of csrc/kernels/fft_conv: on an sm_90 GPU, or in the emulator.

The spectrum of the filters is made once a call (or kept, spectra.py), in float32; gradients.py has the backward, whose
sums over the batch are one more kernel's. The order of all sums follows from shapes: the same call gives the same bits.

Rows longer than a CTA holds go through an outer factor in global memory (long.cu); the spectrum of their filters, and
the filters' gradients, are made by torch.fft.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.fft_conv import eager, gradients
from tkpy.ops.fft_conv.gradients import multiprocessors, reach, shares_for
from tkpy.ops.fft_conv.spectra import kept
from tkpy.ops.fft_conv.tables import PLANS, order, outer_matrices, tables

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
    used = reach(u, k, k_reverse)
    filters = [k] if k_reverse is None else [k, k_reverse]
    if is_long(u.shape[-1]):
        outer, inner = factors_for(u.shape[-1])
        return kept(filters, (outer, inner, *used), lambda: _long_spectrum(outer, inner, used, k, k_reverse))
    points = points_for(u.shape[-1])

    def make() -> torch.Tensor:
        spectrum = torch.empty(u.shape[1], points, 2, dtype=torch.float32, device=u.device)
        taps = [None if t is None else t.float().contiguous() for t in (k, k_reverse)]
        launch("fft_conv_spectrum", *taps, *used, spectrum, tables(points, u.device), op="fft_conv")
        return spectrum

    return kept(filters, (points, *used), make)


def _long_spectrum(outer, inner, used, k, k_reverse):
    """[H, outer, inner, 2], a block of channels at a time: what fft_conv_spectrum does, by torch.fft."""
    points, channels = outer * inner, k.shape[0]
    spectrum = torch.empty(channels, outer, inner, 2, dtype=torch.float32, device=k.device)
    quarter = torch.arange(points, dtype=torch.float64, device=k.device) * (-torch.pi / (2 * points))
    shift = torch.polar(torch.full_like(quarter, 1 / points), quarter).to(torch.complex64)
    step = max(1, eager.BLOCK_ELSEWHERE // points)
    for start in range(0, channels, step):
        block = slice(start, start + step)
        circle = torch.zeros(len(k[block]), points, 2, dtype=torch.float32, device=k.device)
        circle[:, : used[0], 0] = k[block, : used[0]]
        if used[1]:
            circle[:, points - used[1] :, 1] = k_reverse[block, : used[1]].flip(-1)
        values = torch.fft.fft(torch.view_as_complex(circle) * shift)  # at j = j0 + outer j'
        values = values.view(-1, inner, outer).transpose(1, 2)[..., order(inner, k.device)]
        spectrum[block] = torch.view_as_real(values.contiguous())
    return spectrum


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
        work = torch.empty(*u.shape[:2], outer, 2, inner, dtype=torch.float32, device=u.device)
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


def backward(grads, outputs, u, k, k_reverse, skip, pre_gate, post_gate, *, needs):
    (dy,) = grads
    if dy is None or u.numel() == 0:
        return [None] * 6
    u, dy, pre_gate, post_gate = map(_rows, (u, dy, pre_gate, post_gate))
    arguments = (u, k, k_reverse, skip, pre_gate, post_gate)
    if not is_long(u.shape[-1]):
        return gradients.backward(_spectrum, _convolve, _filters, dy, *arguments, needs)
    of_rows = [n and i in (0, 4, 5) for i, n in enumerate(needs)]
    found = gradients.backward(_spectrum, _convolve, _filters, dy, *arguments, of_rows)
    of_filters = [n and i in (1, 2, 3) for i, n in enumerate(needs)]
    if any(of_filters):
        found[1:4] = eager.backward(grads, outputs, *arguments, needs=of_filters)[1:4]
    return found
