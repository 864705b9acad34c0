"""What the kernels of fft_conv, compiled or Triton's, have in common: which taps count, and the backward.

The gradient of u is the same convolution with the conjugate spectrum, that of post_gate the convolution once more with
dy for a gate; those of the filters, and of the skip as their tap of lag 0, are sums over the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def reach(u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None) -> tuple[int, int]:
    """How many taps can reach an output."""
    length = u.shape[-1]
    return min(k.shape[1], length), 0 if k_reverse is None else min(k_reverse.shape[1], length - 1)


@functools.lru_cache(maxsize=4096)
def shares_for(batch: int, channels: int, programs: int) -> int:
    """Parts of the batch that sum on their own: as few as make so many programs."""
    return max(1, min(batch, programs // channels))


def multiprocessors(device: torch.device) -> int:
    """Of the device; of an H100 where kernels are emulated."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _padded(x: torch.Tensor, taps: int) -> torch.Tensor:
    return torch.nn.functional.pad(x[:, :taps], (0, taps - min(taps, x.shape[1])))


def of_rows(convolve: Callable[..., Any], values, u, pre, dy, post, skip, wanted) -> list[torch.Tensor | None]:
    """The gradients of u, pre and post that are wanted, by `convolve(u, pre, post, skip, values, correlate, post2,
    wanted)`, which gives [post (conv(pre u) + skip pre u), the same with post2], those wanted."""
    du = dpre = dpost = None
    if wanted[0] or wanted[1]:
        du, dpre = convolve(dy, post, pre, skip, values, correlate=True, post2=u, wanted=wanted[:2])
    if wanted[2]:
        dpost = convolve(u, pre, dy, skip, values)[0]
    return [du, dpre, dpost]


def backward(
    spectrum: Callable[[], Any], convolve: Callable[..., Any], everything: Callable[..., Any],
    dy, u, k, k_reverse, skip, pre, post, needs,
):  # fmt: skip
    """The gradients: where none of filters is needed by `convolve` as in `of_rows`, else by `everything(values, u, pre,
    dy, post, skip, wanted, used, used_reverse)`, which gives the gradients of u, pre and post that are wanted, and
    [H, used] and [H, used_reverse]: dy post correlated with u pre, over the batch. `spectrum()` gives `values`."""
    need_u, need_k, need_reverse, need_skip, need_pre, need_post = needs
    wanted = (need_u, need_pre, need_post)
    values = spectrum() if any(wanted) else None
    if not (need_k or need_reverse or need_skip):
        du, dpre, dpost = of_rows(convolve, values, u, pre, dy, post, skip, wanted)
        return [du, None, None, None, dpre, dpost]
    ahead, back = reach(u, k, k_reverse)
    lags = max(ahead if need_k else 0, 1 if need_skip else 0)
    du, dpre, dpost, taps, taps_reverse = everything(
        values, u, pre, dy, post, skip, wanted, lags, back if need_reverse else 0
    )
    dk = _padded(taps[:, :ahead], k.shape[1]) if need_k else None
    dk_reverse = _padded(taps_reverse, k_reverse.shape[1]) if need_reverse else None
    return [du, dk, dk_reverse, taps[:, 0] if need_skip else None, dpre, dpost]
