"""hyena_mixer's Triton kernels; triton.py says what they compute together, and launches them.

A thread has a channel: all of its modes (SP, CH) and U samples of each part of z (U, CH), which are asked for at once
and then gone through one by one. Nothing passes between threads, nothing is turned. What does not fill a block of U, or
reaches back to before the sequence, goes through blocks of one. Tables have channels side by side; complex ones are
(.., 2, S, W), real and imaginary parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Sizes and aligned pointers make no other kernel: nothing is loaded in pieces wider than an element.
_POINTERS = (
    "z", "before", "weight", "bias", "poles", "residues", "skip", "step", "start", "end", "y", "dy", "dx", "out",
    "skip_out", "local", "state", "factor",
)  # fmt: skip
_ALL_ALIKE = {
    "do_not_specialize": ["z_b", "z_t", "d_b", "d_t", "part", "W", "L", "S", "B", "plane", "tiles"],
    "do_not_specialize_on_alignment": [f"{name}_ptr" for name in _POINTERS],
}


@triton.jit
def _channels(part, CH: tl.constexpr):
    """Channels of y, and where x2 of each lies in a row of z; x1 and v lie `part` and 2 `part` further on."""
    c = (tl.program_id(0) * CH + tl.arange(0, CH)).to(tl.int64)[None, :]
    return c, c // part * 3 * part + c % part


@triton.jit
def _complex(pointer, n, c, W, S, SP: tl.constexpr):
    """(SP, CH) twice, of table n: real and imaginary parts, 0 beyond S."""
    s = tl.arange(0, SP)[:, None]
    at, mask = pointer + (n * 2 * S + s) * W + c, (c < W) & (s < S)
    return tl.load(at, mask=mask, other=0.0), tl.load(at + S * W, mask=mask, other=0.0)


@triton.jit
def _leave(pointer, n, c, W, S, xr, xi, SP: tl.constexpr):
    s = tl.arange(0, SP)[:, None]
    at, mask = pointer + (n * 2 * S + s) * W + c, (c < W) & (s < S)
    tl.store(at, xr, mask=mask)
    tl.store(at + S * W, xi, mask=mask)


@triton.jit
def _modes(poles_ptr, residues_ptr, skip_ptr, c, W, S, SP: tl.constexpr):
    pr, pi = _complex(poles_ptr, 0, c, W, S, SP)
    rr, ri = _complex(residues_ptr, 0, c, W, S, SP)
    return pr, pi, rr, ri, tl.load(skip_ptr + c, mask=c < W, other=0.0)


@triton.jit
def _row(x, i: tl.constexpr, U: tl.constexpr):
    """Row i of (U, CH). Its thread has all rows: a sum of integers of which all but one are 0 costs nothing."""
    only = tl.where(tl.arange(0, U)[:, None] == i, x.to(tl.int32, bitcast=True), 0)
    return tl.sum(only, 0).to(tl.float32, bitcast=True)[None, :]


@triton.jit
def _taps(weight_ptr, bias_ptr, column, columns, live, K: tl.constexpr):
    """A part's filters: K taps and the bias, (1, CH) each."""
    taps = (tl.load(bias_ptr + column, mask=live, other=0.0),)
    for j in tl.static_range(K):
        # Triton's tuples grow so; it knows neither (*taps, tap) nor a declared type, which mypy would want.
        taps += (tl.load(weight_ptr + j * columns + column, mask=live, other=0.0),)  # type: ignore[assignment]
    return taps


@triton.jit
def _source(z_ptr, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, live, K: tl.constexpr):
    """z of sequence b as `_filtered` takes it: where it lies, and the filters of x2, x1 and v."""
    taps = (
        _taps(weight_ptr, bias_ptr, column, 3 * W, live, K),
        _taps(weight_ptr, bias_ptr, column + part, 3 * W, live, K),
        _taps(weight_ptr, bias_ptr, column + 2 * part, 3 * W, live, K),
    )
    return z_ptr + column, before_ptr + b * (K - 1) * 3 * W + column, z_t, 3 * W, part, live, taps


@triton.jit
def _filtered(z, PART: tl.constexpr, t, K: tl.constexpr, U: tl.constexpr):
    """(U, CH): x2, x1 or v at samples t .. t + U - 1; with U > 1 none of them sees `before`."""
    z_ptr, before_ptr, z_t, columns, part, live, taps = z
    f = taps[PART][0] + tl.zeros([U, 1], tl.float32)
    for j in tl.static_range(K):
        at = (t + j - (K - 1) + tl.arange(0, U))[:, None]
        x_ptr = z_ptr + PART * part + at * z_t
        if U > 1:
            x = tl.load(x_ptr, mask=live, other=0.0).to(tl.float32)
        else:
            x = tl.load(x_ptr, mask=live & (at >= 0), other=0.0).to(tl.float32)
            old = tl.load(before_ptr + PART * part + (at + K - 1) * columns, mask=live & (at < 0), other=0.0)
            x += old.to(tl.float32)
        f += taps[PART][1 + j] * x
    return f


@triton.jit
def _samples(x_ptr, x_t, t, c, live, U: tl.constexpr):
    at = (t + tl.arange(0, U))[:, None] * x_t + c
    return tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _write(x_ptr, x_t, t, c, live, x, U: tl.constexpr):
    at = (t + tl.arange(0, U))[:, None] * x_t + c
    tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), mask=live)


@triton.jit
def _next(pr, pi, xr, xi, u):
    return pr * xr - pi * xi + u, pr * xi + pi * xr


@triton.jit
def _output(rr, ri, xr, xi, skip, u):
    return tl.sum(rr * xr - ri * xi, 0)[None, :] + skip * u


# ------------------------------------------------------------------------------------------------------------- forward
@triton.jit
def _mix_block(z, y_ptr, t, c, column, part, W, modes, states, LOOP: tl.constexpr, K: tl.constexpr, U: tl.constexpr):
    pr, pi, rr, ri, skip = modes
    xr, xi, lr, li = states
    live, row = c < W, tl.arange(0, U)[:, None]
    u = _filtered(z, 1, t, K, U) * _filtered(z, 2, t, K, U)
    x2, y = _filtered(z, 0, t, K, U), u
    for i in tl.static_range(U):
        now = _row(u, i, U)
        xr, xi = _next(pr, pi, xr, xi, now)
        if LOOP:
            lr, li = _next(pr, pi, lr, li, now)
        y = tl.where(row == i, _output(rr, ri, xr, xi, skip, now), y)
    _write(y_ptr, W, t, c, live, x2 * y, U)
    return xr, xi, lr, li


@triton.jit(**_ALL_ALIKE)
def _mix(
    z_ptr, before_ptr, weight_ptr, bias_ptr, poles_ptr, residues_ptr, skip_ptr, step_ptr, start_ptr, y_ptr, end_ptr,
    z_b, z_t, part, W, L, S,
    LOOP: tl.constexpr, K: tl.constexpr, T: tl.constexpr, U: tl.constexpr, CH: tl.constexpr, SP: tl.constexpr
):  # fmt: skip
    """LOOP: all tiles in order, else one. The carry goes from tile to tile in float64, with what a tile adds from 0."""
    tile, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c, column = _channels(part, CH)
    z = _source(z_ptr + b * z_b, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, c < W, K)
    y_ptr += b * L * W
    modes = _modes(poles_ptr, residues_ptr, skip_ptr, c, W, S, SP)
    xr, xi = _complex(start_ptr, tile * tl.num_programs(2) + b, c, W, S, SP)
    carry_r, carry_i = xr.to(tl.float64), xi.to(tl.float64)
    last = tl.minimum(L, (tile + 1) * T).to(tl.int64)
    if LOOP:
        last = L.to(tl.int64)
    for first in range(tile * T, last, T):
        states = (carry_r.to(tl.float32), carry_i.to(tl.float32), tl.zeros_like(xr), tl.zeros_like(xr))
        t, end = first, tl.minimum(first + T, last)
        while t < end:
            if (t >= K - 1) & (t + U <= end):
                states = _mix_block(z, y_ptr, t, c, column, part, W, modes, states, LOOP, K, U)
                t += U
            else:
                states = _mix_block(z, y_ptr, t, c, column, part, W, modes, states, LOOP, K, 1)
                t += 1
        xr, xi, lr, li = states
        if LOOP:
            fr, fi = _complex(step_ptr, 0, c, W, S, SP)
            carry_r, carry_i = fr * carry_r - fi * carry_i + lr, fr * carry_i + fi * carry_r + li
    if last == L:
        _leave(end_ptr, b, c, W, S, xr, xi, SP)


# ------------------------------------------------------------------------------------------------- tiles, all at a time
@triton.jit
def _ahead_block(z, dy, dx2_ptr, t, c, column, part, W, modes, states, sums,
    SPEAKS: tl.constexpr, TANGENT: tl.constexpr, K: tl.constexpr, U: tl.constexpr
):  # fmt: skip
    pr, pi, rr, ri, skip = modes
    xr, xi, sr, si = states
    gxr, gxi, gsr, gsi, gskip = sums
    live, row = c < W, tl.arange(0, U)[:, None]
    u = _filtered(z, 1, t, K, U) * _filtered(z, 2, t, K, U)
    y, g = u, u
    if SPEAKS:
        dy = _samples(dy[0], dy[1], t, c, live, U)
        g = _filtered(z, 0, t, K, U) * dy
        gskip += tl.sum(u * g, 0)[None, :]
    for i in tl.static_range(U):
        now, g_now = _row(u, i, U), _row(g, i, U)
        if TANGENT:
            sr, si = _next(pr, pi, sr, si, xr)
            si += xi
        xr, xi = _next(pr, pi, xr, xi, now)
        if SPEAKS:
            y = tl.where(row == i, _output(rr, ri, xr, xi, skip, now), y)
            gxr, gxi, gsr, gsi = gxr + g_now * xr, gxi + g_now * xi, gsr + g_now * sr, gsi + g_now * si
    if SPEAKS:
        _write(dx2_ptr, 3 * W, t, column, live, y * dy, U)
    return (xr, xi, sr, si), (gxr, gxi, gsr, gsi, gskip)


@triton.jit(**_ALL_ALIKE)
def _ahead(
    z_ptr, before_ptr, weight_ptr, bias_ptr, poles_ptr, residues_ptr, skip_ptr, start_ptr, dy_ptr, dx_ptr,
    out_ptr, skip_out_ptr, z_b, z_t, d_b, d_t, part, W, L, S,
    SPEAKS: tl.constexpr, TANGENT: tl.constexpr, K: tl.constexpr, T: tl.constexpr, U: tl.constexpr, CH: tl.constexpr,
    SP: tl.constexpr
):  # fmt: skip
    """A tile from its first sample on: what it adds to the states (out: x; then s), or, if it SPEAKS, the gradient of
    x2 and its share of sum g x, sum g s (out) and sum g u (skip_out)."""
    tile, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n, count = tile * tl.num_programs(2) + b, tl.num_programs(1).to(tl.int64) * tl.num_programs(2)
    c, column = _channels(part, CH)
    z = _source(z_ptr + b * z_b, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, c < W, K)
    dy = (dy_ptr + b * d_b, d_t)
    dx_ptr += b * L * 3 * W
    modes = _modes(poles_ptr, residues_ptr, skip_ptr, c, W, S, SP)
    zero = tl.zeros([SP, CH], tl.float32)
    states, sums = (zero, zero, zero, zero), (zero, zero, zero, zero, tl.zeros([1, CH], tl.float32))
    if SPEAKS:
        xr, xi = _complex(start_ptr, n, c, W, S, SP)
        sr, si = _complex(start_ptr, count + n, c, W, S, SP)
        states = (xr, xi, sr, si)
    t, end = tile * T, tl.minimum(L, (tile + 1) * T)
    while t < end:
        if (t >= K - 1) & (t + U <= end):
            states, sums = _ahead_block(
                z, dy, dx_ptr, t, c, column, part, W, modes, states, sums, SPEAKS, TANGENT, K, U
            )
            t += U
        else:
            states, sums = _ahead_block(
                z, dy, dx_ptr, t, c, column, part, W, modes, states, sums, SPEAKS, TANGENT, K, 1
            )
            t += 1
    if SPEAKS:
        _leave(out_ptr, n, c, W, S, sums[0], sums[1], SP)
        _leave(out_ptr, count + n, c, W, S, sums[2], sums[3], SP)
        tl.store(skip_out_ptr + n * W + c, sums[4], mask=c < W)
    else:
        _leave(out_ptr, n, c, W, S, states[0], states[1], SP)
        if TANGENT:
            _leave(out_ptr, count + n, c, W, S, states[2], states[3], SP)


@triton.jit
def _back_block(z, dy, dx_ptr, t, c, column, part, W, modes, states, SPEAKS: tl.constexpr, K: tl.constexpr,
    U: tl.constexpr
):  # fmt: skip
    pr, pi, rr, ri, skip = modes
    ar, ai = states
    live, row = c < W, tl.arange(0, U)[:, None]
    g = _filtered(z, 0, t, K, U) * _samples(dy[0], dy[1], t, c, live, U)
    du = g
    for i in tl.static_range(U):
        now = _row(g, U - 1 - i, U)
        ar, ai = ar + rr * now, ai - ri * now
        if SPEAKS:
            du = tl.where(row == U - 1 - i, tl.sum(ar, 0)[None, :] + skip * now, du)
        ar, ai = pr * ar + pi * ai, pr * ai - pi * ar
    if SPEAKS:
        x1, v = _filtered(z, 1, t, K, U), _filtered(z, 2, t, K, U)
        _write(dx_ptr, 3 * W, t, column + part, live, du * v, U)
        _write(dx_ptr, 3 * W, t, column + 2 * part, live, du * x1, U)
    return ar, ai


@triton.jit(**_ALL_ALIKE)
def _back(
    z_ptr, before_ptr, weight_ptr, bias_ptr, poles_ptr, residues_ptr, skip_ptr, end_ptr, dy_ptr, dx_ptr, out_ptr,
    z_b, z_t, d_b, d_t, part, W, L, S,
    SPEAKS: tl.constexpr, K: tl.constexpr, T: tl.constexpr, U: tl.constexpr, CH: tl.constexpr, SP: tl.constexpr
):  # fmt: skip
    """A tile from its last sample on: what it adds to the adjoint states (out), or the gradients of x1 and v."""
    tile, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n = tile * tl.num_programs(2) + b
    c, column = _channels(part, CH)
    z = _source(z_ptr + b * z_b, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, c < W, K)
    dy = (dy_ptr + b * d_b, d_t)
    dx_ptr += b * L * 3 * W
    modes = _modes(poles_ptr, residues_ptr, skip_ptr, c, W, S, SP)
    states = (tl.zeros([SP, CH], tl.float32), tl.zeros([SP, CH], tl.float32))
    if SPEAKS:
        states = _complex(end_ptr, n, c, W, S, SP)
    first, t = tile * T, tl.minimum(L, (tile + 1) * T)
    while t > first:
        if t - U >= tl.maximum(first, K - 1):
            t -= U
            states = _back_block(z, dy, dx_ptr, t, c, column, part, W, modes, states, SPEAKS, K, U)
        else:
            t -= 1
            states = _back_block(z, dy, dx_ptr, t, c, column, part, W, modes, states, SPEAKS, K, 1)
    if not SPEAKS:
        _leave(out_ptr, n, c, W, S, states[0], states[1], SP)


# ------------------------------------------------------------------------------------------------- from tile to tile
@triton.jit
def _pair(pointer, at, plane, mask):
    return tl.load(pointer + at, mask=mask, other=0.0), tl.load(pointer + at + plane, mask=mask, other=0.0)


@triton.jit
def _keep(pointer, at, plane, mask, xr, xi):
    element = pointer.dtype.element_ty
    tl.store(pointer + at, xr.to(element), mask=mask)
    tl.store(pointer + at + plane, xi.to(element), mask=mask)


@triton.jit(**_ALL_ALIKE)
def _carry(
    local_ptr, start_ptr, state_ptr, factor_ptr, B, plane, tiles,
    ADJOINT: tl.constexpr, TANGENT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """start: the states as each tile finds them; state, (2, B, 2, S, W) in float64: before, and after all of them.
    factors: of a whole tile and of the last one, each f and df: x' = f x + local, s' = f s + df x + local."""
    b, i = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask, all_tiles = i < plane, tiles.to(tl.int64) * B * 2 * plane
    here, second = b * 2 * plane + i, B.to(tl.int64) * 2 * plane
    xr, xi = _pair(state_ptr, here, plane, mask)
    sr, si = tl.zeros_like(xr), tl.zeros_like(xr)
    for k in range(tiles):
        tile = tiles - 1 - k if ADJOINT else k
        at = tl.cast(tile, tl.int64) * second + here
        factor = tl.where(tile == tiles - 1, 4 * plane, 0) + i
        fr, fi = _pair(factor_ptr, factor, plane, mask)
        _keep(start_ptr, at, plane, mask, xr, xi)
        if TANGENT:
            _keep(start_ptr, all_tiles + at, plane, mask, sr, si)
            dr, di = _pair(factor_ptr, factor + 2 * plane, plane, mask)
            lr, li = _pair(local_ptr, all_tiles + at, plane, mask)
            sr, si = fr * sr - fi * si + dr * xr - di * xi + lr, fr * si + fi * sr + dr * xi + di * xr + li
        lr, li = _pair(local_ptr, at, plane, mask)
        xr, xi = fr * xr - fi * xi + lr, fr * xi + fi * xr + li
    _keep(state_ptr, here, plane, mask, xr, xi)
    if TANGENT:
        _keep(state_ptr, second + here, plane, mask, sr, si)
