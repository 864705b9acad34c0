"""fft_conv by the compiled kernels of csrc/kernels/fft_conv: on an sm_90 GPU, or in the emulator.

The spectrum of the filters, to whose first tap the skip is added, is made once a call (or kept, spectra.py), in
float32. One kernel makes all gradients and transforms u and dy once (backward.cu); where none of filters is needed,
gradients.py has them by the forward's. The order of all sums follows from shapes: the same call gives the same bits.

Rows longer than a CTA holds stay in the shared memory of a cluster's CTAs (cluster.cu, cluster_backward.cu) where one
is large enough and there are rows for a good part of the machine. Beside them lies the spectrum of their filter, made
there by every launch where none is kept. Others go through an outer factor in global memory (long.cu), as do the
spectrum of their filters and the filters' gradients (long_filter.cu); long_backward.cu is what lies between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from tkpy import machine
from tkpy.machine import launch
from tkpy.ops.fft_conv import eager, gradients
from tkpy.ops.fft_conv.gradients import multiprocessors, reach, shares_for
from tkpy.ops.fft_conv.spectra import keepable, kept
from tkpy.ops.fft_conv.tables import PLANS, outer_matrices, tables

INNER = (2048, 4096, 16384)  # of long rows, and
OUTER = (16, 32, 64, 128, 256)  # their first factors
CLUSTER = 8  # CTAs that hold a long row: its first factor, and
CLUSTERED = (4096, 8192)  # what each of them holds
IN_REGISTERS = 4096  # as in params.h
MOST_CLUSTER = 8
NO_TAPS = (None, None, None, 0, 0)  # of `Filters.taps`


def is_long(length: int) -> bool:
    """Does no CTA hold such a row?"""
    return length > max(PLANS)


def points_for(length: int) -> int:
    """The least plan: circles of twice as many samples hold all lags between two samples of a row."""
    return min(points for points in PLANS if points >= length)


def shares_on_clusters(u: torch.Tensor, inner: int) -> int:
    """Parts of each channel's batch that clusters sum, none of them empty: as make no more clusters than run at a time,
    two CTAs of 4096 points on a multiprocessor or one of 8192."""
    kernel = f"fft_conv_cluster_backward_{inner}"
    at_once = max(CLUSTERED) // inner * machine.clusters(u, "fft_conv_cluster_backward", kernel, CLUSTER, op="fft_conv")
    batch, shares = u.shape[0], shares_for(u.shape[0], u.shape[1], at_once)
    return -(-batch // -(-batch // shares))


def factors_on_clusters(u: torch.Tensor) -> tuple[int, int] | None:
    """Those of u's rows on clusters: None for rows longer than one holds, or too few to give a quarter of all
    multiprocessors a CTA, where three passes by all of them take no longer."""
    rows, length = u.shape[0] * u.shape[1], u.shape[2]
    if not is_long(length) or length > CLUSTER * max(CLUSTERED) or 4 * CLUSTER * rows < multiprocessors(u.device):
        return None
    return CLUSTER, min(inner for inner in CLUSTERED if CLUSTER * inner >= length)


def factors_for(length: int) -> tuple[int, int]:
    """Outer and inner factor of a row through memory: the fewest points, of these the smallest outer factor."""
    plans = ((outer, inner) for outer in OUTER for inner in INNER if outer * inner >= length)
    return min(plans, key=lambda plan: (plan[0] * plan[1], plan[0]))


def _rows(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None or x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def shares_and_cluster(batch: int, channels: int, points: int, device: torch.device) -> tuple[int, int]:
    """Parts of each channel's batch that CTAs sum, a multiple of how many add their sums up: two CTAs on every
    multiprocessor, of rows of up to 1024 as many as make sixteen warps."""
    shares = shares_for(batch, channels, (min(16, 8192 // points) if points <= 1024 else 2) * multiprocessors(device))
    cluster = min(shares, MOST_CLUSTER)
    return -(-shares // cluster) * cluster, cluster


class Filters(NamedTuple):
    """Of rows on clusters, which make the spectrum of them themselves where none is kept."""

    k: torch.Tensor
    k_reverse: torch.Tensor | None
    skip: torch.Tensor | None
    used: int
    used_reverse: int

    def given(self) -> list[torch.Tensor]:
        return [t for t in self[:3] if t is not None]

    def taps(self) -> tuple[torch.Tensor | int | None, ...]:
        """As kernels take them."""
        return *(None if t is None else t.float().contiguous() for t in self[:3]), self.used, self.used_reverse

    def kept(self, factors: tuple[int, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        return kept(self.given(), (*factors, *self[3:], self.k_reverse is None, self.skip is None), make)


def _spectrum(
    u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None, skip: torch.Tensor | None
) -> torch.Tensor | Filters:
    """[H, points, 2], of long rows [H, outer, inner, 2], of those on clusters what it is made of; the skip is a part of
    the tap of lag 0."""
    filters, channels = Filters(k, k_reverse, skip, *reach(u, k, k_reverse)), u.shape[1]
    if factors_on_clusters(u):
        return filters
    factors = factors_for(u.shape[-1]) if is_long(u.shape[-1]) else (points_for(u.shape[-1]),)

    def make() -> torch.Tensor:
        spectrum = torch.empty(channels, *factors, 2, dtype=torch.float32, device=u.device)
        if len(factors) == 1:
            launch("fft_conv_spectrum", *filters.taps(), spectrum, tables(*factors, u.device), op="fft_conv")
        else:
            work, there = _work(u, 1, channels, factors), outer_matrices(factors[0], u.device, False)[0]
            constants = (there, tables(factors[1], u.device, 0.0))
            launch("fft_conv_long_spectrum", *filters.taps(), work, spectrum, *constants, op="fft_conv")
        return spectrum

    return filters.kept(factors, make)


def _work(u: torch.Tensor, rows: int, channels: int, factors: tuple[int, ...]) -> torch.Tensor:
    outer, inner = factors
    return torch.empty(rows, channels, outer, 2, inner, dtype=torch.float32, device=u.device)


def _to_work(u: torch.Tensor, pre: torch.Tensor | None) -> torch.Tensor:
    factors = factors_for(u.shape[-1])
    work = _work(u, u.shape[0], u.shape[1], factors)
    launch("fft_conv_long_rows", u, pre, work, outer_matrices(factors[0], u.device)[0], op="fft_conv")
    return work


def _from_work(work: torch.Tensor, gates, outs) -> None:
    """Of one or two outputs, the first of which is there."""
    launch("fft_conv_long_out", work, outer_matrices(work.shape[2], work.device)[1], *gates, *outs, op="fft_conv")


def _empty(u: torch.Tensor, wanted) -> list[torch.Tensor | None]:
    return [torch.empty(u.shape, dtype=u.dtype, device=u.device) if want else None for want in wanted]


def _in_order(first, second):
    """Gates and outputs, those of an output that is there before those of one that is not."""
    (gate, out), (gate2, out2) = (first, second) if first[1] is not None else (second, first)
    return (gate, gate2), (out, out2)


def _convolve(u, pre, post, _skip, spectrum, *, correlate=False, post2=None, wanted=(True, False)):
    """[post (conv(pre u)), the same with post2], those that are wanted; the skip is in the spectrum."""
    results = _empty(u, wanted)
    gates, outs = _in_order((post, results[0]), (post2, results[1]))
    if isinstance(spectrum, Filters):
        _on_clusters(u, pre, gates, outs, spectrum, factors_on_clusters(u), correlate)
    elif spectrum.dim() == 3:
        constants = (tables(spectrum.shape[1], u.device), correlate)
        launch("fft_conv", u, pre, *gates, *outs, spectrum, *constants, op="fft_conv")
    else:
        work = _to_work(u, pre)
        constants = (tables(work.shape[4], u.device, 0.0), correlate)
        launch("fft_conv_long_inner", work, spectrum, *constants, op="fft_conv")
        _from_work(work, gates, outs)
    return results


def _on_clusters(u, pre, gates, outs, filters, factors, correlate) -> None:
    constants = (factors[1], tables(factors[1], u.device, 0.0), correlate)
    made = False

    def convolve(spectrum, taps) -> None:
        launch("fft_conv_cluster", u, pre, *gates, *outs, spectrum, *taps, *constants, op="fft_conv")

    def make() -> torch.Tensor:  # by the convolution, which leaves it there
        nonlocal made
        spectrum, made = torch.empty(u.shape[1], *factors, 2, dtype=torch.float32, device=u.device), True
        convolve(spectrum, filters.taps())
        return spectrum

    if not keepable(filters.given()):
        convolve(None, filters.taps())
        return
    spectrum = filters.kept(factors, make)
    if not made:
        convolve(spectrum, NO_TAPS)


def forward(u, k, k_reverse, skip, pre_gate, post_gate):
    if u.numel() == 0:
        return u.new_empty(u.shape)
    u, pre_gate, post_gate = map(_rows, (u, pre_gate, post_gate))
    return _convolve(u, pre_gate, post_gate, skip, _spectrum(u, k, k_reverse, skip))[0]


def _everything(spectrum, u, pre, dy, post, _skip, wanted, used, used_reverse):
    """The gradients of u, pre and post that are wanted; [H, used] and [H, used_reverse]: dy post correlated with u pre,
    over the batch."""
    batch, channels, length = u.shape
    factors = factors_on_clusters(u)
    if is_long(length) and factors is None:
        return _everything_long(spectrum, u, pre, dy, post, wanted, used, used_reverse)

    def floats(parts, *shape):
        return torch.empty(parts, channels, *shape, dtype=torch.float32, device=u.device)

    if factors is None:
        points = points_for(length)
        shares, cluster = shares_and_cluster(batch, channels, points, u.device)
        scratch = floats(shares, 4 * points) if points > IN_REGISTERS else None
        groups, name = shares // cluster, "fft_conv_backward"
        how: tuple = (spectrum, scratch, points, cluster, tables(points, u.device))
    else:
        points = factors[1]
        groups, name = shares_on_clusters(u, points), "fft_conv_cluster_backward"
        taps = NO_TAPS if spectrum is None else spectrum.taps()
        how = (*taps, points, tables(points, u.device, 0.0))
    found, sums = _empty(u, wanted), [floats(groups, used), floats(groups, used_reverse)]
    launch(name, u, pre, dy, post, *found, *sums, *how, op="fft_conv")
    return (*found, *(t[0] if groups == 1 else t.sum(0) for t in sums))


def _everything_long(spectrum, u, pre, dy, post, wanted, used, used_reverse):
    """The same through memory, a block of channels at a time, whose work is there at the same time."""
    batch, channels, length = u.shape
    outer, inner = factors_for(length)
    dk, dk_reverse = (torch.empty(channels, n, dtype=torch.float32, device=u.device) for n in (used, used_reverse))
    found = _empty(u, wanted)
    step = max(1, eager.BLOCK_ELSEWHERE // (batch * outer * inner))
    for start in range(0, channels, step):
        block = slice(start, min(start + step, channels))
        rows = [None if t is None else t[:, block] for t in (u, pre, dy, post, *found)]
        values = None if spectrum is None else spectrum[block]
        _block(values, rows, dk[block], dk_reverse[block], (outer, inner))
    return (*found, dk, dk_reverse)


def _block(spectrum, rows, dk, dk_reverse, factors):
    u, pre, dy, post, du, dpre, dpost = rows
    batch, channels, _ = u.shape
    outer, inner = factors
    v_work, g_work = _to_work(u, pre), _to_work(dy, post)
    shares, cluster = shares_and_cluster(batch, channels * outer, inner, u.device)
    sums = _work(u, shares // cluster, channels, factors)
    scratch = torch.empty(2 * cluster, *sums.shape, dtype=sums.dtype, device=u.device) if inner > IN_REGISTERS else None
    of_v, of_g = dpost is not None, du is not None or dpre is not None
    launch(
        "fft_conv_long_backward", v_work, g_work, sums, spectrum, of_v, of_g, scratch, cluster,
        tables(inner, u.device, 0.0), op="fft_conv",
    )  # fmt: skip
    if of_g:
        _from_work(g_work, *_in_order((pre, du), (u, dpre)))
    if of_v:
        _from_work(v_work, (dy, None), (dpost, None))
    total = sums if len(sums) == 1 else sums.sum(0, keepdim=True)
    launch("fft_conv_long_taps", total, dk, dk_reverse, outer_matrices(outer, u.device, False)[1], op="fft_conv")


def backward(grads, outputs, u, k, k_reverse, skip, pre_gate, post_gate, *, needs):
    (dy,) = grads
    if dy is None or u.numel() == 0:
        return [None] * 6
    u, dy, pre_gate, post_gate = map(_rows, (u, dy, pre_gate, post_gate))
    spectrum = functools.partial(_spectrum, u, k, k_reverse, skip)
    return gradients.backward(
        spectrum, _convolve, _everything, dy, u, k, k_reverse, skip, pre_gate, post_gate, needs
    )  # fmt: skip
