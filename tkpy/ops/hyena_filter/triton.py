"""hyena_filter in Triton: a tile of lags goes through the whole network in registers.

forward    sums a_n = W_n h_{n-1} + b_n, h_n = sin(f a_n), h_{-1} = features; taps = (W_out h_N) exp(-|decay| t)
backward   the forward again, which leaves the sums; dh_N = (dtaps window)^T W_out; da_n = dh_n f cos(f a_n),
           dh_{n-1} = da_n W_n, df = sum of dh_n cos(f a_n) a_n, of which each tile leaves a share; the gradients of the
           weights, sums over all lags, are products that torch makes of da_n and h_n
shapes     features (L, E) of any strides; weights, biases, times, decay contiguous; taps (D, L); sums, da (N + 1, L, W)
precision  float32: products by three tf32 products each (2^-21 of a term), the sines of phases of any size by libdevice
limits     E, W <= 128; compute capability 8.0 or newer
cost       2 L W (E + N W + D) flops; D L elements written, in the backward read twice
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.hyena_filter.eager import window_gradients

ROWS, CHANNELS = 32, 32  # a tile: lags, channels


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _matrix(ptr, row, col, rows, cols):
    """A contiguous matrix, with zeros around it."""
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    return tl.load(ptr + row[:, None] * cols + col[None, :], mask=mask, other=0.0)


@triton.jit
def _window(times_ptr, decay_ptr, lag, channel, L, D):
    """(CHANNELS, ROWS)."""
    time = tl.load(times_ptr + lag, mask=lag < L, other=0.0)
    rate = tl.abs(tl.load(decay_ptr + channel, mask=channel < D, other=0.0))
    return tl.exp(-rate[:, None] * time[None, :])


@triton.jit(do_not_specialize=["L", "D"])
def _forward(
    features_ptr, times_ptr, input_weight_ptr, input_bias_ptr, hidden_weight_ptr, hidden_bias_ptr, frequency_ptr,
    output_weight_ptr, decay_ptr, taps_ptr, sums_ptr, L, D, E, W, f_l, f_e,
    N: tl.constexpr, TAPS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Writes the taps, or (not TAPS) the sums of all layers."""
    lag = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e, w = tl.arange(0, FEATURES), tl.arange(0, WIDTH)
    here = (lag < L)[:, None]
    frequency = tl.load(frequency_ptr + w, mask=w < W, other=0.0)
    x = tl.load(features_ptr + lag[:, None] * f_l + e[None, :] * f_e, mask=here & (e < E)[None, :], other=0.0)
    a = _product(x, tl.trans(_matrix(input_weight_ptr, w, e, W, E)))
    a += tl.load(input_bias_ptr + w, mask=w < W, other=0.0)[None, :]
    for n in tl.static_range(N):
        if not TAPS:
            tl.store(sums_ptr + (n * L + lag[:, None]) * W + w[None, :], a, mask=here & (w < W)[None, :])
        a = _product(tl.sin(frequency[None, :] * a), tl.trans(_matrix(hidden_weight_ptr + n * W * W, w, w, W, W)))
        a += tl.load(hidden_bias_ptr + n * W + w, mask=w < W, other=0.0)[None, :]
    if TAPS:
        h = tl.trans(tl.sin(frequency[None, :] * a))
        for first in range(0, D, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            taps = _product(_matrix(output_weight_ptr, channel, w, D, W), h)
            taps *= _window(times_ptr, decay_ptr, lag, channel, L, D)
            at = taps_ptr + channel[:, None].to(tl.int64) * L + lag[None, :]
            tl.store(at, taps, mask=(channel < D)[:, None] & (lag < L)[None, :])
    else:
        tl.store(sums_ptr + (N * L + lag[:, None]) * W + w[None, :], a, mask=here & (w < W)[None, :])


@triton.jit(do_not_specialize=["L", "D"])
def _backward(
    times_ptr, input_weight_ptr, hidden_weight_ptr, frequency_ptr, output_weight_ptr, decay_ptr, dtaps_ptr, sums_ptr,
    dsums_ptr, dfeatures_ptr, share_ptr, L, D, E, W, N: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    lag = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e, w = tl.arange(0, FEATURES), tl.arange(0, WIDTH)
    mask = (lag < L)[:, None] & (w < W)[None, :]
    frequency = tl.load(frequency_ptr + w, mask=w < W, other=0.0)
    dh = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, D, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = (channel < D)[:, None] & (lag < L)[None, :]
        dtaps = tl.load(dtaps_ptr + channel[:, None].to(tl.int64) * L + lag[None, :], mask=inside, other=0.0)
        ahead = dtaps * _window(times_ptr, decay_ptr, lag, channel, L, D)
        dh += _product(tl.trans(ahead), _matrix(output_weight_ptr, channel, w, D, W))
    share = tl.zeros([WIDTH], tl.float32)
    for back in tl.static_range(N + 1):
        n = N - back
        at = (n * L + lag[:, None]) * W + w[None, :]
        a = tl.load(sums_ptr + at, mask=mask, other=0.0)
        dphase = dh * tl.cos(frequency[None, :] * a)
        share += tl.sum(dphase * a, 0)
        da = dphase * frequency[None, :]
        tl.store(dsums_ptr + at, da, mask=mask)
        if n > 0:
            dh = _product(da, _matrix(hidden_weight_ptr + (n - 1) * W * W, w, w, W, W))
        else:
            dx = _product(da, _matrix(input_weight_ptr, w, e, W, E))
            inside = (lag < L)[:, None] & (e < E)[None, :]
            tl.store(dfeatures_ptr + lag[:, None] * E + e[None, :], dx, mask=inside)
    tl.store(share_ptr + tl.program_id(0) * W + w, share, mask=w < W)


def _tile(features: torch.Tensor, hidden_weight: torch.Tensor) -> dict[str, int]:
    sizes = {"FEATURES": features.shape[1], "WIDTH": hidden_weight.shape[1]}
    return {"N": hidden_weight.shape[0], "ROWS": ROWS, "CHANNELS": CHANNELS, "num_warps": 8} | {
        name: max(16, triton.next_power_of_2(size)) for name, size in sizes.items()
    }


def _run(features, others, taps, sums):
    """`others`: the arguments after features, contiguous. Writes taps, or (None) sums."""
    length, hidden_weight, output_weight = features.shape[0], others[3], others[6]
    _forward[(triton.cdiv(length, ROWS),)](
        features, *others, features if taps is None else taps, features if sums is None else sums,
        length, output_weight.shape[0], features.shape[1], hidden_weight.shape[1], *features.stride(),
        TAPS=taps is not None, **_tile(features, hidden_weight),
    )  # fmt: skip


def forward(features, *others):
    taps = features.new_empty(others[6].shape[0], features.shape[0])
    if taps.numel():
        _run(features, [t.contiguous() for t in others], taps, None)
    return taps


def backward(grads, outputs, features, *others, needs):
    (dtaps,), (taps,) = grads, outputs
    if dtaps is None:
        return [None] * 9
    if not taps.numel():
        return [torch.zeros_like(t) for t in (features, *others)]
    others = tuple(t.contiguous() for t in others)
    times, input_weight, _, hidden_weight, _, frequency, output_weight, decay = others
    (length, inputs), (layers, width, _) = features.shape, hidden_weight.shape
    sums = features.new_empty(layers + 1, length, width)
    _run(features, others, None, sums)
    dtaps, dsums, dfeatures = dtaps.contiguous(), torch.empty_like(sums), features.new_empty(length, inputs)
    shares = features.new_empty(triton.cdiv(length, ROWS), width)
    # With fused products, lanes that hold copies of one sum differ in its last bit, and race to store it.
    _backward[(shares.shape[0],)](
        times, input_weight, hidden_weight, frequency, output_weight, decay, dtaps, sums, dsums, dfeatures, shares,
        length, output_weight.shape[0], inputs, width, **_tile(features, hidden_weight), enable_fp_fusion=False,
    )  # fmt: skip
    h = sums.mul_(frequency).sin_()
    ahead = torch.outer(-decay.abs(), times).exp_().mul_(dtaps)
    dtimes, ddecay = window_gradients(dtaps, taps, times, decay)
    return [
        dfeatures, dtimes, dsums[0].t() @ features, dsums[0].sum(0), dsums[1:].mT @ h[:-1], dsums[1:].sum(1),
        shares.sum(0), ahead @ h[-1], ddecay,
    ]  # fmt: skip


_POINTERS = (
    "features_ptr times_ptr input_weight_ptr input_bias_ptr hidden_weight_ptr hidden_bias_ptr frequency_ptr "
    "output_weight_ptr decay_ptr taps_ptr sums_ptr dtaps_ptr dsums_ptr dfeatures_ptr share_ptr"
)
_ARGUMENTS = dict.fromkeys(_POINTERS.split(), "*fp32") | dict.fromkeys("LDEW", "i32") | {"f_l": "i64", "f_e": "i64"}
_CONSTANTS = {"N": 2, "ROWS": ROWS, "CHANNELS": CHANNELS, "FEATURES": 16, "WIDTH": 64}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_forward, _ARGUMENTS, _CONSTANTS | {"TAPS": True}),
    (_forward, _ARGUMENTS, _CONSTANTS | {"TAPS": False}),
    (_backward, _ARGUMENTS, _CONSTANTS),
)
