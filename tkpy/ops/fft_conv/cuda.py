"""fft_conv by the compiled kernels of csrc/kernels/fft_conv: on an sm_90 GPU, or in the emulator.

The spectrum of the filters is made once a call (or kept, spectra.py), in float32. The gradient of u is the same
convolution with the conjugate spectrum, that of post_gate the convolution once more with dy for a gate; those of the
filters, and of the skip as their tap of lag 0, are sums over the batch that one more kernel makes. The order of all
sums follows from shapes: the same call gives the same bits.
"""

from __future__ import annotations

import functools

import torch

from tkpy.machine import launch
from tkpy.ops.fft_conv.spectra import kept
from tkpy.ops.fft_conv.tables import PLANS, tables

LONGEST = max(PLANS)
IN_REGISTERS = 4096  # as in params.h


def points_for(length: int) -> int:
    """The least plan: circles of twice as many samples hold all lags between two samples of a row."""
    return min(points for points in PLANS if points >= length)


def _rows(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None or x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _reach(u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None) -> tuple[int, int]:
    """How many taps can reach an output."""
    length = u.shape[-1]
    return min(k.shape[1], length), 0 if k_reverse is None else min(k_reverse.shape[1], length - 1)


def _spectrum(u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None) -> torch.Tensor:
    points, reach = points_for(u.shape[-1]), _reach(u, k, k_reverse)

    def make() -> torch.Tensor:
        spectrum = torch.empty(u.shape[1], points, 2, dtype=torch.float32, device=u.device)
        taps = [None if t is None else t.float().contiguous() for t in (k, k_reverse)]
        launch("fft_conv_spectrum", *taps, *reach, spectrum, tables(points, u.device), op="fft_conv")
        return spectrum

    return kept([k] if k_reverse is None else [k, k_reverse], (points, *reach), make)


def _convolve(u, pre, post, skip, spectrum, *, correlate=False, post2=None, wanted=(True, False)):
    """[post (conv(pre u) + skip pre u), the same with post2], those that are wanted."""
    outs = [torch.empty(u.shape, dtype=u.dtype, device=u.device) if want else None for want in wanted]
    gates = [post, post2]
    if not wanted[0]:
        outs.reverse()
        gates.reverse()
    launch(
        "fft_conv", u, pre, *gates, *outs, None if skip is None else skip.float().contiguous(), spectrum,
        tables(spectrum.shape[1], u.device), correlate, op="fft_conv",
    )  # fmt: skip
    return outs if wanted[0] else outs[::-1]


def forward(u, k, k_reverse, skip, pre_gate, post_gate):
    if u.numel() == 0:
        return u.new_empty(u.shape)
    u, pre_gate, post_gate = map(_rows, (u, pre_gate, post_gate))
    return _convolve(u, pre_gate, post_gate, skip, _spectrum(u, k, k_reverse))[0]


@functools.lru_cache(maxsize=4096)
def shares_for(batch: int, channels: int, multiprocessors: int) -> int:
    """Parts of the batch that sum on their own: as few as give every multiprocessor two CTAs."""
    return max(1, min(batch, 2 * multiprocessors // channels))


def _filters(u, pre, dy, post, used, used_reverse):
    """[H, used] and [H, used_reverse]: dy post correlated with u pre, over the batch."""
    batch, channels, length = u.shape
    count = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 132
    points, shares = points_for(length), shares_for(batch, channels, count)

    def floats(*shape):
        return torch.empty(shares, channels, *shape, dtype=torch.float32, device=u.device)

    dk, dk_reverse = floats(used), floats(used_reverse)
    scratch = floats(4 * points) if points > IN_REGISTERS else None
    launch(
        "fft_conv_gradient", u, pre, dy, post, dk, dk_reverse, scratch, points, tables(points, u.device), op="fft_conv"
    )
    return dk.sum(0), dk_reverse.sum(0)


def _padded(x: torch.Tensor, taps: int) -> torch.Tensor:
    return torch.nn.functional.pad(x[:, :taps], (0, taps - min(taps, x.shape[1])))


def backward(grads, outputs, u, k, k_reverse, skip, pre_gate, post_gate, *, needs):
    (dy,) = grads
    if dy is None or u.numel() == 0:
        return [None] * 6
    u, dy, pre_gate, post_gate = map(_rows, (u, dy, pre_gate, post_gate))
    need_u, need_k, need_reverse, need_skip, need_pre, need_post = needs
    du = dk = dk_reverse = dskip = dpre = dpost = None
    if need_u or need_pre or need_post:
        spectrum = _spectrum(u, k, k_reverse)
    if need_u or need_pre:
        du, dpre = _convolve(
            dy, post_gate, pre_gate, skip, spectrum, correlate=True, post2=u, wanted=(need_u, need_pre)
        )
    if need_post:
        dpost = _convolve(u, pre_gate, dy, skip, spectrum)[0]
    if need_k or need_reverse or need_skip:
        ahead, back = _reach(u, k, k_reverse)
        lags = max(ahead if need_k else 0, 1 if need_skip else 0)
        taps, taps_reverse = _filters(u, pre_gate, dy, post_gate, lags, back if need_reverse else 0)
        dk = _padded(taps[:, :ahead], k.shape[1]) if need_k else None
        dk_reverse = _padded(taps_reverse, k_reverse.shape[1]) if need_reverse else None
        dskip = taps[:, 0] if need_skip else None
    return [du, dk, dk_reverse, dskip, dpre, dpost]
