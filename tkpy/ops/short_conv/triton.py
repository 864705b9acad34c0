"""short_conv in Triton.

forward    y[b,c,t] = act(z),  z = bias[c] + sum_j w[c,j] x[b,c,t-(K-1)+j];  before x lies the state, or 0
backward   gz = gy act'(z);  gx[t] = sum_j w[c,j] gz[t+(K-1)-j];  dw[c,j] = sum of gz[t] x[t-(K-1)+j];  db = sum of gz
           one kernel writes gz (silu only: without it gz is gy) and its share of dw and db, a second one gx; torch adds
           the shares, in fixed order, and forms the few columns of the state's gradient
tiles      CHANNELS x STEPS of one sequence; x is read K times, K-1 of them from L1. The tile is long in the direction
           in which x is contiguous: both layouts are read coalesced. y and gx are contiguous in time
shapes     x, gy (B, C, L), state (B, C, K-1) of any strides; y, gz, gx (B, C, L) contiguous; shares (B, chunks, C, K+1)
precision  sums in float32, y and gx rounded once; gz is kept in float32
limits     K <= 8; B and C / CHANNELS below 65536; compute capability 8.0 or newer
cost       2 elements moved an element, 2 K flops: bound by memory; backward 4 elements (silu: 3, and 8 bytes for gz)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.short_conv.eager import backward_by, final_state, forward_by, state_gradient


@triton.jit
def _input(x_ptr, state_ptr, b, c, t, x_b, x_c, x_t, s_b, s_c, s_k, C, L, K: tl.constexpr, STATE: tl.constexpr):
    """x[b,c,t] for any t: from the state before the sequence, 0 after it. c (CHANNELS, 1), t (1, STEPS)."""
    inside = (c < C) & (t >= 0) & (t < L)
    x = tl.load(x_ptr + b * x_b + c * x_c + t * x_t, mask=inside, other=0.0).to(tl.float32)
    if STATE:
        before = (c < C) & (t < 0) & (t >= 1 - K)
        x += tl.load(state_ptr + b * s_b + c * s_c + (t + K - 1) * s_k, mask=before, other=0.0).to(tl.float32)
    return x


@triton.jit
def _forward(
    x_ptr, w_ptr, bias_ptr, state_ptr, y_ptr, C, L, x_b, x_c, x_t, s_b, s_c, s_k,
    K: tl.constexpr, BIAS: tl.constexpr, STATE: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)[:, None]
    t = (tl.program_id(0).to(tl.int64) * STEPS + tl.arange(0, STEPS))[None, :]
    z = tl.zeros([CHANNELS, STEPS], dtype=tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    for j in tl.static_range(K):
        w = tl.load(w_ptr + c * K + j, mask=c < C, other=0.0).to(tl.float32)
        z += w * _input(x_ptr, state_ptr, b, c, t - (K - 1) + j, x_b, x_c, x_t, s_b, s_c, s_k, C, L, K, STATE)
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y_ptr + (b * C + c) * L + t, z.to(y_ptr.dtype.element_ty), mask=(c < C) & (t < L))


@triton.jit
def _backward_sums(
    x_ptr, w_ptr, bias_ptr, state_ptr, gy_ptr, gz_ptr, share_ptr, C, L, x_b, x_c, x_t, s_b, s_c, s_k, g_b, g_c, g_t,
    TILES, K: tl.constexpr, BIAS: tl.constexpr, STATE: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """gz, and the shares of dw (first K columns) and db (the last one) of TILES tiles in a row."""
    b = tl.program_id(2).to(tl.int64)
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)[:, None]
    k = tl.arange(0, 16)[None, :]
    share = tl.zeros([CHANNELS, 16], dtype=tl.float32)
    bias = tl.zeros([CHANNELS, 1], dtype=tl.float32)
    if BIAS:
        bias += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    for i in range(TILES):
        t = ((tl.program_id(0) * TILES + i).to(tl.int64) * STEPS + tl.arange(0, STEPS))[None, :]
        mask = (c < C) & (t < L)
        gz = tl.load(gy_ptr + b * g_b + c * g_c + t * g_t, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            z = tl.zeros([CHANNELS, STEPS], dtype=tl.float32) + bias
            for j in tl.static_range(K):
                w = tl.load(w_ptr + c * K + j, mask=c < C, other=0.0).to(tl.float32)
                z += w * _input(x_ptr, state_ptr, b, c, t - (K - 1) + j, x_b, x_c, x_t, s_b, s_c, s_k, C, L, K, STATE)
            gate = 1.0 / (1.0 + tl.exp(-z))
            gz *= gate * (1.0 + z * (1.0 - gate))
            tl.store(gz_ptr + (b * C + c) * L + t, gz, mask=mask)
        share += tl.where(k == K, tl.sum(gz, axis=1, keep_dims=True), 0.0)
        for j in tl.static_range(K):
            x = _input(x_ptr, state_ptr, b, c, t - (K - 1) + j, x_b, x_c, x_t, s_b, s_c, s_k, C, L, K, STATE)
            share += tl.where(k == j, tl.sum(gz * x, axis=1, keep_dims=True), 0.0)
    at = share_ptr + ((b * tl.num_programs(0) + tl.program_id(0)) * C + c) * (K + 1) + k
    tl.store(at, share, mask=(c < C) & (k <= K))


@triton.jit
def _backward_input(
    gz_ptr, w_ptr, gx_ptr, C, L, g_b, g_c, g_t, K: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr
):
    b = tl.program_id(2).to(tl.int64)
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)[:, None]
    t = (tl.program_id(0).to(tl.int64) * STEPS + tl.arange(0, STEPS))[None, :]
    gx = tl.zeros([CHANNELS, STEPS], dtype=tl.float32)
    for j in tl.static_range(K):
        later = t + (K - 1) - j
        gz = tl.load(gz_ptr + b * g_b + c * g_c + later * g_t, mask=(c < C) & (later < L), other=0.0).to(tl.float32)
        gx += tl.load(w_ptr + c * K + j, mask=c < C, other=0.0).to(tl.float32) * gz
    tl.store(gx_ptr + (b * C + c) * L + t, gx.to(gx_ptr.dtype.element_ty), mask=(c < C) & (t < L))


def _tile(x: torch.Tensor) -> dict[str, int]:
    """2048 elements, 16 to a thread, no longer than the sequence; wide in channels where those are contiguous."""
    channels, length = x.shape[1], x.shape[2]
    if x.stride(1) == 1 and x.stride(2) != 1:
        wide = min(64, triton.next_power_of_2(channels))
        return {"CHANNELS": wide, "STEPS": min(32, triton.next_power_of_2(length)), "num_warps": 4}
    steps = min(512, triton.next_power_of_2(length))
    return {"CHANNELS": min(2048 // steps, triton.next_power_of_2(channels)), "STEPS": steps, "num_warps": 4}


def _grid(x: torch.Tensor, tile: dict[str, int], tiles: int = 1) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[2], tile["STEPS"] * tiles), triton.cdiv(x.shape[1], tile["CHANNELS"]), x.shape[0]


def _sources(x, weight, bias, state):
    """Pointers (an absent tensor is never read), and the strides of x and of the state."""
    strides = (*x.stride(), *((0, 0, 0) if state is None else state.stride()))
    pointers = (x, weight.contiguous(), x if bias is None else bias.contiguous(), x if state is None else state)
    return pointers, strides


def _options(weight, bias, state, activation) -> dict[str, object]:
    known = {"K": weight.shape[1], "BIAS": bias is not None}
    return known | {"STATE": state is not None and weight.shape[1] > 1, "SILU": activation == "silu"}


def _forward_rows(x, weight, bias, initial_state, activation, output_final_state):
    y = x.new_empty(x.shape)
    if x.numel():
        tile = _tile(x)
        pointers, strides = _sources(x, weight, bias, initial_state)
        options = _options(weight, bias, initial_state, activation)
        _forward[_grid(x, tile)](*pointers, y, x.shape[1], x.shape[2], *strides, **options, **tile)
    return y, final_state(x, weight, initial_state) if output_final_state else x.new_empty(0)


def _backward_rows(grads, x, weight, bias, initial_state, activation, output_final_state, *, needs):
    gy, g_final = grads
    taps = weight.shape[1]
    gx, shares = x.new_zeros(x.shape), x.new_zeros(1, 1, x.shape[1], taps + 1, dtype=torch.float32)
    gz = x.new_zeros(x.shape) if gy is None else gy
    if gy is not None and x.numel():
        tile = _tile(x)
        pointers, strides = _sources(x, weight, bias, initial_state)
        if activation == "silu":
            gz = x.new_empty(x.shape, dtype=torch.float32)
        tiles = max(1, x.numel() // (2048 * 512))
        grid = _grid(x, tile, tiles)
        shares = x.new_empty(x.shape[0], grid[0], x.shape[1], taps + 1, dtype=torch.float32)
        _backward_sums[grid](
            *pointers, gy, gz, shares, x.shape[1], x.shape[2], *strides, *gy.stride(), tiles,
            **_options(weight, bias, initial_state, activation), **tile,
            # With fused products, lanes that hold copies of one sum differ in its last bit, and race to store it.
            enable_fp_fusion=False,
        )  # fmt: skip
        tile = _tile(gz)
        _backward_input[_grid(x, tile)](gz, pointers[1], gx, x.shape[1], x.shape[2], *gz.stride(), K=taps, **tile)
    g_initial = state_gradient(gz, weight) if initial_state is not None else None
    if output_final_state and g_final is not None:
        kept = min(taps - 1, x.shape[2])
        gx[..., x.shape[2] - kept :] += g_final[..., taps - 1 - kept :]
        if g_initial is not None:
            g_initial[..., kept:] += g_final[..., : taps - 1 - kept]
    total = shares.sum((0, 1))
    return [gx, total[:, :taps], total[:, taps] if bias is not None else None, g_initial]


def forward(*args):
    return forward_by(_forward_rows, *args)


def backward(grads, outputs, *args, needs):
    return backward_by(_backward_rows, grads, *args, needs=needs)


_STRIDES = dict.fromkeys(("x_b", "x_c", "x_t", "s_b", "s_c", "s_k"), "i64")
_SIZES = {"C": "i32", "L": "i32"}
_INPUTS = dict.fromkeys(("x_ptr", "w_ptr", "bias_ptr", "state_ptr"), "*bf16")
_GRADIENT = dict.fromkeys(("g_b", "g_c", "g_t"), "i64")
_TILE = {"CHANNELS": 4, "STEPS": 512}
_ON = {"BIAS": True, "STATE": True, "SILU": True}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_forward, _INPUTS | {"y_ptr": "*bf16"} | _SIZES | _STRIDES, {"K": 4} | _ON | _TILE),
    (
        _backward_sums,
        _INPUTS | {"gy_ptr": "*bf16", "gz_ptr": "*fp32", "share_ptr": "*fp32"}
        | _SIZES | _STRIDES | _GRADIENT | {"TILES": "i32"},
        {"K": 4} | _ON | _TILE,
    ),
    (_backward_input, {"gz_ptr": "*fp32", "w_ptr": "*bf16", "gx_ptr": "*bf16"} | _SIZES | _GRADIENT, {"K": 4} | _TILE),
)  # fmt: skip
