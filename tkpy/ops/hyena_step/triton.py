"""hyena_step in Triton: a program a block of channels and a row.

forward    f = bias + weight [last inputs, z] for x2, x1 and v of a channel;  x' = p x + x1 v,
           y = x2 (Re sum_s R x' + skip x1 v)
shapes     z, y, inputs contiguous (B, 3 W), (B, W), (B, 3 W, K-1); complex tensors as pairs of float32, (.., S, 2)
precision  float32; outputs rounded once
limits     compute capability 8.0 or newer
cost       16 S bytes a channel and row, p and R beside them: bound by memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.hyena_step.eager import backward as backward


@triton.jit
def _load(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _short(
    z_ptr, weight_ptr, bias_ptr, before_ptr, after_ptr, row, channel, mask, W,
    TAPS: tl.constexpr, BIAS: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """The short filter of some channels of z; their new last inputs are left."""
    at = row * 3 * W + channel
    now = tl.load(z_ptr + at, mask=mask, other=0.0)
    f = now.to(tl.float32) * _load(weight_ptr, channel * TAPS + (TAPS - 1), mask)
    if BIAS:
        f += _load(bias_ptr, channel, mask)
    for j in tl.static_range(TAPS - 1):
        if BEFORE:
            x = tl.load(before_ptr + at * (TAPS - 1) + j, mask=mask, other=0.0)
        else:
            x = now * 0
        f += x.to(tl.float32) * _load(weight_ptr, channel * TAPS + j, mask)
        if j > 0:
            tl.store(after_ptr + at * (TAPS - 1) + (j - 1), x, mask=mask)
    if TAPS > 1:
        tl.store(after_ptr + at * (TAPS - 1) + (TAPS - 2), now, mask=mask)
    return f


@triton.jit(do_not_specialize=["W", "part"])
def _forward(
    z_ptr, weight_ptr, bias_ptr, poles_ptr, residues_ptr, skip_ptr, before_ptr, start_ptr, y_ptr, after_ptr, end_ptr,
    W, part, S,
    TAPS: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr, BEFORE: tl.constexpr, START: tl.constexpr,
    CHANNELS: tl.constexpr, MODES: tl.constexpr,
):  # fmt: skip
    row, channel = tl.program_id(1).to(tl.int64), tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mask, s = channel < W, tl.arange(0, MODES)
    first = channel // part * 3 * part + channel % part
    x2 = _short(z_ptr, weight_ptr, bias_ptr, before_ptr, after_ptr, row, first, mask, W, TAPS, BIAS, BEFORE)
    x1 = _short(z_ptr, weight_ptr, bias_ptr, before_ptr, after_ptr, row, first + part, mask, W, TAPS, BIAS, BEFORE)
    v = _short(z_ptr, weight_ptr, bias_ptr, before_ptr, after_ptr, row, first + 2 * part, mask, W, TAPS, BIAS, BEFORE)
    now = x1 * v
    mode, inside = 2 * (channel[:, None] * S + s[None, :]), mask[:, None] & (s < S)[None, :]
    at = row * 2 * W * S + mode
    re, im = tl.zeros([CHANNELS, MODES], tl.float32) + now[:, None], tl.zeros([CHANNELS, MODES], tl.float32)
    if START:
        pr, pi = _load(poles_ptr, mode, inside), _load(poles_ptr, mode + 1, inside)
        xr, xi = _load(start_ptr, at, inside), _load(start_ptr, at + 1, inside)
        re += pr * xr - pi * xi
        im += pr * xi + pi * xr
    tl.store(end_ptr + at, re, mask=inside)
    tl.store(end_ptr + at + 1, im, mask=inside)
    y = tl.sum(_load(residues_ptr, mode, inside) * re - _load(residues_ptr, mode + 1, inside) * im, 1)
    if SKIP:
        y += _load(skip_ptr, channel, mask) * now
    tl.store(y_ptr + row * W + channel, (x2 * y).to(y_ptr.dtype.element_ty), mask=mask)


def _pairs(x):
    return None if x is None else torch.view_as_real(x.resolve_conj().contiguous())


def forward(z, weight, bias, poles, residues, skip, fir_state, state, groups):
    batch, (width, modes), taps = z.shape[0], poles.shape, weight.shape[1]
    y = torch.empty(batch, width, dtype=z.dtype, device=z.device)
    inputs = torch.empty(batch, 3 * width, taps - 1, dtype=z.dtype, device=z.device)
    end = torch.empty(batch, width, modes, dtype=torch.complex64, device=z.device)
    if z.numel():
        block = max(1, triton.next_power_of_2(modes))
        channels = max(16, min(128, 1024 // block))
        tensors = (z, weight, bias, _pairs(poles), _pairs(residues), skip, fir_state, _pairs(state))
        given = {"BIAS": bias, "SKIP": skip, "BEFORE": fir_state, "START": state}
        # With fused products, lanes that hold copies of one sum differ in its last bit, and race to store it.
        _forward[(triton.cdiv(width, channels), batch)](
            *(z if t is None else t.contiguous() for t in tensors), y, inputs, _pairs(end), width, width // groups,
            modes, TAPS=taps, **{name: t is not None for name, t in given.items()}, CHANNELS=channels, MODES=block,
            enable_fp_fusion=False,
        )  # fmt: skip
    return y, inputs, end


_ARGUMENTS = (
    dict.fromkeys(("z_ptr", "weight_ptr", "bias_ptr", "skip_ptr", "before_ptr", "y_ptr", "after_ptr"), "*bf16")
    | dict.fromkeys(("poles_ptr", "residues_ptr", "start_ptr", "end_ptr"), "*fp32")
    | dict.fromkeys(("W", "part", "S"), "i32")
)
_CONSTANTS = {"TAPS": 3, "BIAS": True, "SKIP": True, "BEFORE": True, "START": True, "CHANNELS": 128, "MODES": 8}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = ((_forward, _ARGUMENTS, _CONSTANTS),)
