"""short_conv in plain PyTorch: one multiply-add over the whole of x per tap, in the layout that x has.

With K taps, tap j reads the sequence K-1-j positions back; what lies before x comes from the state.
Nothing is padded or concatenated: the first K-1 outputs get the state's share added to them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _taps(weight: Tensor, x: Tensor) -> list[Tensor]:
    """The taps as (C, 1), each contiguous over the channels."""
    return [tap[:, None] for tap in weight.t().to(_wide(x[:0]).dtype).contiguous()]


def _convolve(x: Tensor, taps: list[Tensor], bias: Tensor | None, state: Tensor | None) -> Tensor:
    """The convolution of a wide x (B, C, L)."""
    length, last = x.shape[-1], len(taps) - 1
    y = x * taps[last] if bias is None else torch.addcmul(bias.to(x.dtype)[:, None], x, taps[last])
    for j in range(last):
        lag = last - j
        if lag < length:
            y[..., lag:].addcmul_(x[..., : length - lag], taps[j])
        if state is not None:
            reach = min(lag, length)
            y[..., :reach].addcmul_(state[..., j : j + reach], taps[j])
    return y


def _forward_one(x, weight, bias, initial_state, activation, output_final_state):
    state = None if initial_state is None else _wide(initial_state)
    y = _convolve(_wide(x), _taps(weight, x), bias, state)
    if activation == "silu":
        F.silu(y, inplace=True)
    return y.to(x.dtype), final_state(x, weight, initial_state) if output_final_state else x.new_empty(0)


def final_state(x: Tensor, weight: Tensor, initial_state: Tensor | None) -> Tensor:
    """The last K-1 inputs (B, C, K-1); where x is shorter, the end of the initial state, or zeros, comes first."""
    length, carried = x.shape[-1], weight.shape[1] - 1
    final = x[..., max(0, length - carried) :]
    if length < carried:
        kept = carried - length
        before = x.new_zeros(*x.shape[:2], kept) if initial_state is None else initial_state[..., length:]
        final = torch.cat([before, final], dim=-1)
    return final


def state_gradient(gz: Tensor, weight: Tensor) -> Tensor:
    """The initial state's share of the outputs, turned back: (B, C, K-1), wide."""
    last = weight.shape[1] - 1
    head = _wide(gz[..., :last])
    grad = head.new_zeros(*gz.shape[:2], last)
    for j, tap in enumerate(_taps(weight, head)[:last]):
        reach = min(last - j, gz.shape[-1])
        grad[..., j : j + reach].addcmul_(head[..., :reach], tap)
    return grad


def _through_silu(gy: Tensor, z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gy * gate * (1 + z * (1 - gate))


def _gradient_of_tap(gz: Tensor, x: Tensor, state: Tensor | None, lag: int, last: int) -> Tensor:
    length, start = x.shape[-1], last - lag
    total = (gz[..., lag:] * x[..., : max(0, length - lag)]).sum((0, 2))
    if state is not None and lag:
        reach = min(lag, length)
        total += (gz[..., :reach] * state[..., start : start + reach]).sum((0, 2))
    return total


def _backward_one(grads, x, weight, bias, initial_state, activation, output_final_state, *, needs):
    gy, g_final = grads
    length, last = x.shape[-1], weight.shape[1] - 1
    wide, taps = _wide(x), _taps(weight, x)
    state = None if initial_state is None else _wide(initial_state)
    gz = torch.zeros_like(wide) if gy is None else _wide(gy)
    if activation == "silu" and gy is not None:
        gz = _through_silu(gz, _convolve(wide, taps, bias, state))
    gx = gz * taps[last]
    g_initial = state_gradient(gz, weight)
    for j in range(last):
        lag = last - j
        if lag < length:
            gx[..., : length - lag].addcmul_(gz[..., lag:], taps[j])
    if output_final_state and g_final is not None:
        kept = min(last, length)
        gx[..., length - kept :] += g_final[..., last - kept :]
        g_initial[..., kept:] += g_final[..., : last - kept]
    g_weight = g_bias = None
    if needs[1]:
        g_weight = torch.stack([_gradient_of_tap(gz, wide, state, last - j, last) for j in range(last + 1)], dim=1)
    if needs[2]:
        g_bias = gz.sum((0, 2))
    return [gx, g_weight, g_bias, g_initial if initial_state is not None else None]


def forward_by(
    one: Callable[..., tuple[Tensor, Tensor]], x, weight, bias, initial_state, cu_seqlens, activation, final
):
    """The op's forward by `one`, a forward without cu_seqlens, of each sequence by itself."""
    if cu_seqlens is None:
        return one(x, weight, bias, initial_state, activation, final)
    y = x.new_empty(x.shape)
    states = x.new_empty((len(cu_seqlens) - 1, x.shape[1], weight.shape[1] - 1) if final else (0,))
    for i, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        before = None if initial_state is None else initial_state[i : i + 1]
        y[..., start:stop], last = one(x[..., start:stop], weight, bias, before, activation, final)
        if final:
            states[i : i + 1] = last
    return y, states


def backward_by(
    one: Callable[..., list[Any]], grads, x, weight, bias, initial_state, cu_seqlens, activation, final, *, needs
):
    """The op's backward by `one`, a backward without cu_seqlens; the sequences' gradients of weight and bias summed."""
    needs = [needed for i, needed in enumerate(needs) if i != 4]
    if cu_seqlens is None:
        return [*one(grads, x, weight, bias, initial_state, activation, final, needs=needs), None]
    gy, g_final = grads
    gx = torch.zeros_like(x, memory_format=torch.contiguous_format)
    g_state = None if initial_state is None else torch.zeros_like(initial_state, memory_format=torch.contiguous_format)
    sums: list[Tensor | None] = [None, None]
    for i, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        own = [None if gy is None else gy[..., start:stop], None if g_final is None else g_final[i : i + 1]]
        before = None if initial_state is None else initial_state[i : i + 1]
        found = one(own, x[..., start:stop], weight, bias, before, activation, final, needs=needs)
        if found[0] is not None:
            gx[..., start:stop] = found[0]
        if g_state is not None and found[3] is not None:
            g_state[i : i + 1] = found[3]
        sums = [b if a is None else a if b is None else a + b for a, b in zip(sums, found[1:3], strict=True)]
    return [gx, *sums, g_state, None]


def forward(*args):
    return forward_by(_forward_one, *args)


def backward(grads, outputs, *args, needs):
    return backward_by(_backward_one, grads, *args, needs=needs)
