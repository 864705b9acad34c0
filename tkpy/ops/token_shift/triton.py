"""token_shift in Triton: all mixes of a tile of tokens in one pass.

forward    y[m,t] = p + mix[m] (x[t] - p),  p = x[t-1], before the first token `last` or 0
backward   dx[t] = sum_m mix[m] dy[m,t] + (1 - mix[m]) dy[m,t+1];  dmix[m] = sum of dy[m,t] (x[t] - p), shares of which,
           one a tile, torch adds in fixed order; dlast = sum_m (1 - mix[m]) dy[m,0], a row of dx before the first
shapes     x, last of any strides; mix (M, C), y, dy (M, B, T, C), dx (B, T + 1, C) contiguous; shares (tiles, M, C)
precision  float32; y and dx rounded once
limits     M <= 16; compute capability 8.0 or newer
cost       (1 + M) elements moved an element, backward (2 + M), rows at the edges of tiles twice (from the L2)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TOKENS, CHANNELS = 16, 128


@triton.jit
def _before(x_ptr, last_ptr, b, t, c, T, C, x_b, x_t, x_c, l_b, l_c, LAST: tl.constexpr):
    """x of the tokens before t, (TOKENS, CHANNELS)."""
    inside = ((t > 0) & (t <= T))[:, None] & (c < C)[None, :]
    p = tl.load(x_ptr + b * x_b + (t - 1)[:, None] * x_t + c[None, :] * x_c, mask=inside, other=0.0).to(tl.float32)
    if LAST:
        first = (t == 0)[:, None] & (c < C)[None, :]
        p += tl.load(last_ptr + b * l_b + c[None, :] * l_c, mask=first, other=0.0).to(tl.float32)
    return p


@triton.jit(do_not_specialize=["T"])
def _forward(
    x_ptr, mix_ptr, last_ptr, y_ptr, B, T, C, x_b, x_t, x_c, l_b, l_c,
    LAST: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (t < T)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + b * x_b + t[:, None] * x_t + c[None, :] * x_c, mask=mask, other=0.0).to(tl.float32)
    p = _before(x_ptr, last_ptr, b, t, c, T, C, x_b, x_t, x_c, l_b, l_c, LAST)
    for m in tl.static_range(M):
        mix = tl.load(mix_ptr + m * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        at = y_ptr + ((m * B + b) * T + t[:, None]) * C + c[None, :]
        tl.store(at, (p + mix * (x - p)).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _backward(
    x_ptr, mix_ptr, last_ptr, dy_ptr, dx_ptr, share_ptr, B, T, C, x_b, x_t, x_c, l_b, l_c,
    LAST: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Row t + 1 of dx is token t, row 0 the token before the first: programs start there."""
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS) - 1
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    here, later = ((t >= 0) & (t < T))[:, None] & (c < C)[None, :], (t + 1 < T)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + b * x_b + t[:, None] * x_t + c[None, :] * x_c, mask=here, other=0.0).to(tl.float32)
    step = x - _before(x_ptr, last_ptr, b, t, c, T, C, x_b, x_t, x_c, l_b, l_c, LAST)
    dx = tl.zeros([TOKENS, CHANNELS], tl.float32)
    share = share_ptr + (tl.program_id(0).to(tl.int64) * B + b) * M * C + c
    for m in tl.static_range(M):
        mix = tl.load(mix_ptr + m * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        at = dy_ptr + ((m * B + b) * T + t[:, None]) * C + c[None, :]
        dy = tl.load(at, mask=here, other=0.0).to(tl.float32)
        dx += mix * dy + (1.0 - mix) * tl.load(at + C, mask=later, other=0.0).to(tl.float32)
        tl.store(share + m * C, tl.sum(dy * step, 0), mask=c < C)
    at = dx_ptr + (b * (T + 1) + t[:, None] + 1) * C + c[None, :]
    tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=(t < T)[:, None] & (c < C)[None, :])


def _launch(kernel, rows, x, mix, last, *outputs, **options):
    grid = (triton.cdiv(rows, TOKENS), triton.cdiv(x.shape[2], CHANNELS), x.shape[0])
    before = x[:, 0] if last is None else last
    kernel[grid](
        x, mix.contiguous(), before, *outputs, *x.shape, *x.stride(), *before.stride(),
        LAST=last is not None, M=mix.shape[0], TOKENS=TOKENS, CHANNELS=CHANNELS, num_warps=4, **options,
    )  # fmt: skip
    return grid[0]


def forward(x, mix, last):
    y = x.new_empty(mix.shape[0], *x.shape)
    if y.numel():
        _launch(_forward, x.shape[1], x, mix, last, y)
    return y


def backward(grads, outputs, x, mix, last, *, needs):
    (dy,) = grads
    if dy is None or not x.numel():
        return [None, None, None]
    (batch, length, channels), tiles = x.shape, triton.cdiv(x.shape[1] + 1, TOKENS)
    dx = x.new_empty(batch, length + 1, channels)
    shares = x.new_empty(tiles * batch, mix.shape[0], channels, dtype=torch.float32)
    # With fused products, lanes that hold copies of one sum differ in its last bit, and race to store it.
    _launch(_backward, length + 1, x, mix, last, dy.contiguous(), dx, shares, enable_fp_fusion=False)
    return [dx[:, 1:], shares.sum(0), dx[:, 0] if last is not None else None]


_ARGUMENTS = (
    dict.fromkeys(("x_ptr", "last_ptr", "y_ptr", "dy_ptr", "dx_ptr"), "*bf16")
    | {"mix_ptr": "*fp32", "share_ptr": "*fp32"}
    | dict.fromkeys("BTC", "i32")
    | dict.fromkeys(("x_b", "x_t", "x_c", "l_b", "l_c"), "i64")
)
_CONSTANTS = {"LAST": True, "M": 4, "TOKENS": TOKENS, "CHANNELS": CHANNELS}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = ((_forward, _ARGUMENTS, _CONSTANTS), (_backward, _ARGUMENTS, _CONSTANTS))
