"""fft_conv by real FFTs in float32 (float64 for float64 inputs), a block of channels at a time.

Blocks bound the memory that spectra take and keep them in cache. The backward transforms its inputs again: kept spectra
would take four times the memory of their signals, and forward + backward with them (as autograd has it) is slower.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

#: Padded samples that one block of channels may hold: on a CPU what stays in cache, elsewhere what fills the device.
BLOCK = {"cpu": 1 << 19}
BLOCK_ELSEWHERE = 1 << 26
FEWEST = 8  # channels of a block, however long: a single FFT at a time is several times slower


@functools.lru_cache(maxsize=1024)
def fast_length(least: int) -> int:
    """The smallest even number >= `least` of the form 2^a 3^b 5^c, for which FFTs are fast."""
    best = 2
    while best < least:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            size = 2 * three
            while size < least:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best


class _Plan:
    """Sizes of one call: taps that can reach an output, the FFT length, and the blocks of channels."""

    def __init__(self, u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None):
        batch, self.channels, self.length = u.shape
        self.dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        self.ahead = min(k.shape[1], self.length)
        self.back = 0 if k_reverse is None else min(k_reverse.shape[1], self.length - 1)
        # Outputs 0..L-1 see no wrapped term if neither end of the full convolution reaches round to them.
        self.size = fast_length(self.length + max(self.ahead - 1, self.back))
        budget = BLOCK.get(u.device.type, BLOCK_ELSEWHERE)
        self.step = max(FEWEST, budget // (batch * self.size))

    def blocks(self) -> Iterator[slice]:
        for start in range(0, self.channels, self.step):
            yield slice(start, min(start + self.step, self.channels))

    def kernel_spectrum(self, k: torch.Tensor, k_reverse: torch.Tensor | None) -> torch.Tensor:
        """(h, size/2+1): taps k at 0.., taps k_reverse counted backwards from the end of the circle."""
        circle = k.new_zeros(k.shape[0], self.size, dtype=self.dtype)
        circle[:, : self.ahead] = k[:, : self.ahead]
        if k_reverse is not None and self.back:
            circle[:, self.size - self.back :] = k_reverse[:, : self.back].flip(-1)
        return torch.fft.rfft(circle)

    def spectrum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x, n=self.size)

    def signal(self, spectrum: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(spectrum, n=self.size)


def _product(a: torch.Tensor, b: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return a.to(dtype) if b is None else a.to(dtype) * b


def _part(x: torch.Tensor | None, block: slice) -> torch.Tensor | None:
    """The channels of a block: of (B, H, L) tensors the second dimension, of (H, ...) tensors the first."""
    if x is None:
        return None
    return x[:, block] if x.dim() == 3 else x[block]


def forward(u, k, k_reverse, skip, pre_gate, post_gate):
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if u.numel() == 0:
        return y
    plan = _Plan(u, k, k_reverse)
    for block in plan.blocks():
        reverse, weight, pre, post = (_part(x, block) for x in (k_reverse, skip, pre_gate, post_gate))
        v = _product(u[:, block], pre, plan.dtype)
        spectrum = plan.spectrum(v).mul_(plan.kernel_spectrum(k[block], reverse))
        part = plan.signal(spectrum)[..., : plan.length]
        if weight is not None:
            part = part.addcmul_(v, weight.to(plan.dtype)[:, None])
        y[:, block] = part if post is None else part.mul_(post)
    return y


def backward(grads, outputs, u, k, k_reverse, skip, pre_gate, post_gate, *, needs):
    """With v = pre u, g = post dy: dv is g correlated with the taps, dk is g correlated with v, over the batch."""
    (dy,) = grads
    if dy is None or u.numel() == 0:
        return [None] * 6
    plan = _Plan(u, k, k_reverse)
    arguments = (u, k, k_reverse, skip, pre_gate, post_gate)
    result = [
        torch.zeros(x.shape, dtype=plan.dtype if x.dim() < 3 else x.dtype, device=x.device) if needed else None
        for x, needed in zip(arguments, needs, strict=True)
    ]
    for block in plan.blocks():
        parts = [_part(x, block) for x in arguments]
        _backward_block(plan, dy[:, block], parts, [_part(x, block) for x in result])
    return result


def _backward_block(plan, dy, arguments, result) -> None:
    u, k, k_reverse, skip, pre, post = arguments
    du, dk, dk_reverse, dskip, dpre, dpost = result
    v, g = _product(u, pre, plan.dtype), _product(dy, post, plan.dtype)
    taps = plan.kernel_spectrum(k, k_reverse)
    weight = None if skip is None else skip.to(plan.dtype)[:, None]
    g_spectrum = plan.spectrum(g)
    if dk is not None or dk_reverse is not None or dpost is not None:
        v_spectrum = plan.spectrum(v)
    if dk is not None or dk_reverse is not None:
        circle = plan.signal((g_spectrum * v_spectrum.conj_physical()).sum(0))
        if dk is not None:
            dk[:, : plan.ahead] = circle[:, : plan.ahead]
        if dk_reverse is not None:
            dk_reverse[:, : plan.back] = circle[:, plan.size - plan.back :].flip(-1)
    if dskip is not None:
        dskip[:] = (g * v).sum((0, 2))
    if dpost is not None:
        before = plan.signal(v_spectrum.mul_(taps))[..., : plan.length]
        before = before if weight is None else before.addcmul_(v, weight)
        dpost[:] = before.mul_(dy)
    if du is not None or dpre is not None:
        dv = plan.signal(g_spectrum.mul_(taps.conj_physical()))[..., : plan.length]
        dv = dv if weight is None else dv.addcmul_(g, weight)
        if dpre is not None:
            dpre[:] = dv * u
        if du is not None:
            du[:] = dv if pre is None else dv.mul_(pre)
