"""hyena_mixer's Triton kernels; triton.py says what they compute together, and launches them.

A thread has a channel: all of its modes (SP, CH) and U samples of each part of z, U times (1, CH), which are asked for
at once and then gone through one by one. Nothing passes between threads, nothing is turned. What does not fill a block
of U, or reaches back to before the sequence, goes through blocks of one. Tables have channels side by side; complex
ones are (.., 2, S, W), real and imaginary parts.

Tuples grow by +=: Triton knows neither (*taps, tap) nor a declared type, which mypy would want.
"""

from __future__ import annotations

# mypy: disable-error-code="assignment, misc"
import triton
import triton.language as tl

#: Sizes and aligned pointers make no other kernel: nothing is loaded in pieces wider than an element.
_POINTERS = (
    "z", "before", "weight", "bias", "poles", "residues", "skip", "step", "start", "end", "y", "dy", "dz", "dbefore",
    "after", "filter_out", "out", "skip_out", "local", "state", "factor",
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
def _taps(weight_ptr, bias_ptr, column, columns, live, K: tl.constexpr):
    """A part's filters: K taps and the bias, (1, CH) each."""
    taps = (tl.load(bias_ptr + column, mask=live, other=0.0),)
    for j in tl.static_range(K):
        taps += (tl.load(weight_ptr + j * columns + column, mask=live, other=0.0),)
    return taps


@triton.jit
def _source(z_ptr, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, L, live, K: tl.constexpr):
    """z of sequence b as `_inputs` takes it: where it lies, and the filters of x2, x1 and v."""
    taps = (
        _taps(weight_ptr, bias_ptr, column, 3 * W, live, K),
        _taps(weight_ptr, bias_ptr, column + part, 3 * W, live, K),
        _taps(weight_ptr, bias_ptr, column + 2 * part, 3 * W, live, K),
    )
    return z_ptr, before_ptr + b * (K - 1) * 3 * W, z_t, 3 * W, part, L, live, taps, column


@triton.jit
def _inputs(z, PART: tl.constexpr, t, K: tl.constexpr, U: tl.constexpr):
    """What the filters of x2, x1 or v meet at samples t .. t + U - 1, K - 1 + U times (1, CH). With U > 1 none of it
    lies in `before`; with U = 1 the sample may itself lie outside of the sequence, where all is 0."""
    z_ptr, before_ptr, z_t, columns, part, length, live, _, column = z
    met = ()
    for i in tl.static_range(K - 1 + U):
        at = t + i - (K - 1)
        x_ptr = z_ptr + (PART * part + at * z_t) + column
        if U > 1:
            x = tl.load(x_ptr, mask=live, other=0.0).to(tl.float32)
        else:
            x = tl.load(x_ptr, mask=live & (at >= 0) & (at < length), other=0.0).to(tl.float32)
            old = live & (at < 0) & (at >= 1 - K)
            x += tl.load(before_ptr + (PART * part + (at + K - 1) * columns) + column, mask=old, other=0.0).to(
                tl.float32
            )
        met += (x,)
    return met


@triton.jit
def _filter(z, PART: tl.constexpr, met, K: tl.constexpr, U: tl.constexpr):
    taps, filtered = z[7][PART], ()
    for i in tl.static_range(U):
        f = taps[0]
        for j in tl.static_range(K):
            f += taps[1 + j] * met[i + j]
        filtered += (f,)
    return filtered


@triton.jit
def _filtered(z, PART: tl.constexpr, t, K: tl.constexpr, U: tl.constexpr):
    """x2, x1 or v at samples t .. t + U - 1: U of (1, CH), as all that follows."""
    return _filter(z, PART, _inputs(z, PART, t, K, U), K, U)


@triton.jit
def _products(x, y, U: tl.constexpr):
    found = ()
    for i in tl.static_range(U):
        found += (x[i] * y[i],)
    return found


@triton.jit
def _samples(x_ptr, x_t, t, c, live, U: tl.constexpr):
    found = ()
    for i in tl.static_range(U):
        found += (tl.load(x_ptr + (t + i) * x_t + c, mask=live, other=0.0).to(tl.float32),)
    return found


@triton.jit
def _write(x_ptr, x_t, t, c, live, x):
    tl.store(x_ptr + t * x_t + c, x.to(x_ptr.dtype.element_ty), mask=live)


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
    u = _products(_filtered(z, 1, t, K, U), _filtered(z, 2, t, K, U), U)
    x2 = _filtered(z, 0, t, K, U)
    for i in tl.static_range(U):
        xr, xi = _next(pr, pi, xr, xi, u[i])
        if LOOP:
            lr, li = _next(pr, pi, lr, li, u[i])
        _write(y_ptr, W, t + i, c, c < W, x2[i] * _output(rr, ri, xr, xi, skip, u[i]))
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
    z = _source(z_ptr + b * z_b, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, L, c < W, K)
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


# ---------------------------------------------------------------------------------------------- back through a filter
@triton.jit
def _behind(dz_ptr, dbefore_ptr, after_ptr, b, part, W, L, K: tl.constexpr):
    """Where gradients of z, and of what lies before it, go; and what comes back from those who read its last inputs."""
    near = b * (K - 1) * 3 * W
    return dz_ptr + b * L * 3 * W, dbefore_ptr + near, after_ptr + near, 3 * W, part, L


@triton.jit
def _filter_back(z, behind, PART: tl.constexpr, d, kept, t, first, last, BACK: tl.constexpr, K: tl.constexpr,
    U: tl.constexpr
):  # fmt: skip
    """d: gradients of a part at samples t .. t + U - 1; kept: of the K - 1 samples after them (BACK), or before them.
    With all of these it is known what z's gradient is from sample t on (BACK), or from t - (K - 1): it is written as
    far as it lies in first .. last - 1, or in `before`. Returns what the next block keeps."""
    dz_ptr, dbefore_ptr, after_ptr, columns, part, length = behind
    taps, live, column, from_part = z[7][PART], z[6], z[8], PART * part
    rows, start = d + kept, t
    if not BACK:
        rows, start = kept + d, t - (K - 1)
    for i in tl.static_range(U):
        at, dz = start + i, taps[K] * rows[i]
        for lag in tl.static_range(1, K):
            dz += taps[K - lag] * rows[i + lag]
        if U == 1:
            k = at - (length - (K - 1))
            dz += tl.load(after_ptr + (from_part + k * columns) + column, mask=live & (k >= 0), other=0.0).to(
                tl.float32
            )
            _write(dbefore_ptr + from_part, columns, at + (K - 1), column, live & (at < 0), dz)
        _write(dz_ptr + from_part, columns, at, column, live & (at >= first) & (at < last), dz)
    return rows[: K - 1] if BACK else rows[U:]


@triton.jit
def _sum_products(sums, d, met, K: tl.constexpr, U: tl.constexpr):
    """A part's shares: of the bias, then of the taps."""
    bias = sums[0]
    for i in tl.static_range(U):
        bias += d[i]
    found = (bias,)
    for j in tl.static_range(K):
        tap = sums[1 + j]
        for i in tl.static_range(U):
            tap += d[i] * met[i + j]
        found += (tap,)
    return found


@triton.jit
def _nothing(CH: tl.constexpr, COUNT: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros += (tl.zeros([1, CH], tl.float32),)
    return zeros


@triton.jit
def _leave_sums(filter_out_ptr, n, column, columns, live, sums, K: tl.constexpr):
    for j in tl.static_range(K + 1):
        tl.store(filter_out_ptr + (n * (K + 1) + j) * columns + column, sums[j], mask=live)


# ------------------------------------------------------------------------------------------------- tiles, all at a time
@triton.jit
def _ahead_block(z, dy, behind, t, first, end, c, W, L, modes, states, sums, filters, kept,
    SPEAKS: tl.constexpr, TANGENT: tl.constexpr, K: tl.constexpr, U: tl.constexpr
):  # fmt: skip
    pr, pi, rr, ri, skip = modes
    xr, xi, sr, si = states
    gxr, gxi, gsr, gsi, gskip = sums
    u = _products(_filtered(z, 1, t, K, U), _filtered(z, 2, t, K, U), U)
    met, g, d = u, u, ()
    if SPEAKS:
        met = _inputs(z, 0, t, K, U)
        dy = _samples(dy[0], dy[1], t, c, (c < W) & (t < L), U)
        g = _products(_filter(z, 0, met, K, U), dy, U)
    for i in tl.static_range(U):
        if TANGENT:
            sr, si = _next(pr, pi, sr, si, xr)
            si += xi
        xr, xi = _next(pr, pi, xr, xi, u[i])
        if SPEAKS:
            mine = g[i] if U > 1 else tl.where(t < end, g[i], 0.0)
            gxr, gxi, gsr, gsi = gxr + mine * xr, gxi + mine * xi, gsr + mine * sr, gsi + mine * si
            gskip += mine * u[i]
            dx2 = _output(rr, ri, xr, xi, skip, u[i]) * dy[i]
            d += (dx2 if U > 1 else tl.where(t < L, dx2, 0.0),)
    if SPEAKS:
        kept = _filter_back(z, behind, 0, d, kept, t, first, end, False, K, U)
        filters = _sum_products(filters, d if U > 1 else (tl.where(t < end, d[0], 0.0),), met, K, U)
    return (xr, xi, sr, si), (gxr, gxi, gsr, gsi, gskip), filters, kept


@triton.jit(**_ALL_ALIKE)
def _ahead(
    z_ptr, before_ptr, weight_ptr, bias_ptr, poles_ptr, residues_ptr, skip_ptr, start_ptr, dy_ptr, dz_ptr,
    dbefore_ptr, after_ptr, out_ptr, skip_out_ptr, filter_out_ptr, z_b, z_t, d_b, d_t, part, W, L, S,
    SPEAKS: tl.constexpr, TANGENT: tl.constexpr, K: tl.constexpr, T: tl.constexpr, U: tl.constexpr, CH: tl.constexpr,
    SP: tl.constexpr
):  # fmt: skip
    """A tile from its first sample on: what it adds to the states (out: x; then s), or, if it SPEAKS, the gradient of
    x2's part of z, and its share of sum g x, sum g s (out), of sum g u (skip_out) and of x2's filters (filter_out). It
    then goes on for K - 1 samples, which z's gradient at its last ones depends on."""
    tile, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n, count = tile * tl.num_programs(2) + b, tl.num_programs(1).to(tl.int64) * tl.num_programs(2)
    c, column = _channels(part, CH)
    z = _source(z_ptr + b * z_b, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, L, c < W, K)
    dy = (dy_ptr + b * d_b, d_t)
    behind = _behind(dz_ptr, dbefore_ptr, after_ptr, b, part, W, L, K)
    modes = _modes(poles_ptr, residues_ptr, skip_ptr, c, W, S, SP)
    zero = tl.zeros([SP, CH], tl.float32)
    states, sums = (zero, zero, zero, zero), (zero, zero, zero, zero, tl.zeros([1, CH], tl.float32))
    filters, kept = _nothing(CH, K + 1), _nothing(CH, K - 1)
    first, end = tile * T, tl.minimum(L, (tile + 1) * T)
    t, stop = first, end
    if SPEAKS:
        xr, xi = _complex(start_ptr, n, c, W, S, SP)
        sr, si = _complex(start_ptr, count + n, c, W, S, SP)
        states, stop = (xr, xi, sr, si), end + (K - 1)
    while t < stop:
        if (t >= K - 1) & (t + U <= end):
            states, sums, filters, kept = _ahead_block(
                z, dy, behind, t, first, end, c, W, L, modes, states, sums, filters, kept, SPEAKS, TANGENT, K, U
            )
            t += U
        else:
            states, sums, filters, kept = _ahead_block(
                z, dy, behind, t, first, end, c, W, L, modes, states, sums, filters, kept, SPEAKS, TANGENT, K, 1
            )
            t += 1
    if SPEAKS:
        _leave(out_ptr, n, c, W, S, sums[0], sums[1], SP)
        _leave(out_ptr, count + n, c, W, S, sums[2], sums[3], SP)
        tl.store(skip_out_ptr + n * W + c, sums[4], mask=c < W)
        _leave_sums(filter_out_ptr, n, column, 3 * W, c < W, filters, K)
    else:
        _leave(out_ptr, n, c, W, S, states[0], states[1], SP)
        if TANGENT:
            _leave(out_ptr, count + n, c, W, S, states[2], states[3], SP)


@triton.jit
def _back_block(z, dy, behind, t, first, last, c, W, modes, states, x1_filters, v_filters, x1_kept, v_kept,
    SPEAKS: tl.constexpr, K: tl.constexpr, U: tl.constexpr
):  # fmt: skip
    pr, pi, rr, ri, skip = modes
    ar, ai = states
    g = _products(_filtered(z, 0, t, K, U), _samples(dy[0], dy[1], t, c, (c < W) & (t >= 0), U), U)
    du = ()
    for i in tl.static_range(U):
        now = g[U - 1 - i]
        ar, ai = ar + rr * now, ai - ri * now
        if SPEAKS:
            later, du = du, (tl.sum(ar, 0)[None, :] + skip * now,)
            du += later
        ar, ai = pr * ar + pi * ai, pr * ai - pi * ar
    if SPEAKS:
        x1_met, v_met = _inputs(z, 1, t, K, U), _inputs(z, 2, t, K, U)
        dx1, dv = _products(du, _filter(z, 2, v_met, K, U), U), _products(du, _filter(z, 1, x1_met, K, U), U)
        if U == 1:
            dx1, dv = (tl.where(t >= 0, dx1[0], 0.0),), (tl.where(t >= 0, dv[0], 0.0),)
        x1_kept = _filter_back(z, behind, 1, dx1, x1_kept, t, 0, last, True, K, U)
        v_kept = _filter_back(z, behind, 2, dv, v_kept, t, 0, last, True, K, U)
        if U == 1:
            dx1, dv = (tl.where(t >= first, dx1[0], 0.0),), (tl.where(t >= first, dv[0], 0.0),)
        x1_filters = _sum_products(x1_filters, dx1, x1_met, K, U)
        v_filters = _sum_products(v_filters, dv, v_met, K, U)
    return (ar, ai), x1_filters, v_filters, x1_kept, v_kept


@triton.jit(**_ALL_ALIKE)
def _back(
    z_ptr, before_ptr, weight_ptr, bias_ptr, poles_ptr, residues_ptr, skip_ptr, end_ptr, dy_ptr, dz_ptr, dbefore_ptr,
    after_ptr, out_ptr, filter_out_ptr, z_b, z_t, d_b, d_t, part, W, L, S,
    SPEAKS: tl.constexpr, K: tl.constexpr, T: tl.constexpr, U: tl.constexpr, CH: tl.constexpr, SP: tl.constexpr
):  # fmt: skip
    """A tile from its last sample on: what it adds to the adjoint states (out), or the gradients of x1's and v's parts
    of z and its share of their filters' (filter_out). It then goes on to K - 1 samples before the tile, where it
    leaves z's gradient in place of that at its own last K - 1."""
    tile, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n = tile * tl.num_programs(2) + b
    c, column = _channels(part, CH)
    z = _source(z_ptr + b * z_b, before_ptr, weight_ptr, bias_ptr, z_t, b, column, part, W, L, c < W, K)
    dy = (dy_ptr + b * d_b, d_t)
    behind = _behind(dz_ptr, dbefore_ptr, after_ptr, b, part, W, L, K)
    modes = _modes(poles_ptr, residues_ptr, skip_ptr, c, W, S, SP)
    states = (tl.zeros([SP, CH], tl.float32), tl.zeros([SP, CH], tl.float32))
    x1_filters, v_filters = _nothing(CH, K + 1), _nothing(CH, K + 1)
    x1_kept, v_kept = _nothing(CH, K - 1), _nothing(CH, K - 1)
    first, t = tile * T, tl.minimum(L, (tile + 1) * T)
    stop, last, whole = first, t, L.to(tl.int64)
    if SPEAKS:
        states, stop = _complex(end_ptr, n, c, W, S, SP), first - (K - 1)
        whole = L.to(tl.int64) - (K - 1)  # after which `after` is added
        last = tl.where(t == L, t, t - (K - 1))
    while t > stop:
        if (t - U >= tl.maximum(first, K - 1)) & (t <= whole):
            t -= U
            states, x1_filters, v_filters, x1_kept, v_kept = _back_block(
                z, dy, behind, t, first, last, c, W, modes, states, x1_filters, v_filters, x1_kept, v_kept, SPEAKS, K, U
            )
        else:
            t -= 1
            states, x1_filters, v_filters, x1_kept, v_kept = _back_block(
                z, dy, behind, t, first, last, c, W, modes, states, x1_filters, v_filters, x1_kept, v_kept, SPEAKS, K, 1
            )
    if SPEAKS:
        _leave_sums(filter_out_ptr, n, column + part, 3 * W, c < W, x1_filters, K)
        _leave_sums(filter_out_ptr, n, column + 2 * part, 3 * W, c < W, v_filters, K)
    else:
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
