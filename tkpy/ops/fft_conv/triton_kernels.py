"""The Triton kernels of fft_conv: a transform of M = N1 N2 points held by one program, and what surrounds it.

A row of at most M samples x lies on a circle of 2 M that wraps with a minus sign (csrc/kernels/fft_conv/transform.cuh
has the mathematics): values Z_j = sum_n z_n w^(n (j + 1/4)), w = exp(-2 pi i / M), z_n = x_n - i x_(n+M), serve 2 M
real samples, and a real z gives real outputs. With n = n1 N2 + n2 and j = j1 + N1 j2,

    Z = ((F x) * T) S    F[j1, n1] = w^(N2 n1 (j1 + 1/4)), T[j1, n2] = w^(n2 (j1 + 1/4)), S[n2, j2] = w^(N1 n2 j2)

x and Z are N1 x N2 tiles, never put in another order: F multiplies from the left, S, which is symmetric, from the
right, and back it is conj(F)^T ((Z conj(S)) * conj(T)). Longer rows are N0 rows of M: n = n0 M + n', j = j0 + N0 j': a
product over n0 at the frequencies j0 + 1/4 and the factors exp(-2 pi i n' (j0 + 1/4) / (N0 M)) around transforms of M
at whole frequencies (F and T without the 1/4).

_convolve   a row: gates, transform, times the spectrum, back, skip and gates; one program holds all of it
_spectrum   the values of a filter's taps, over the number of points: of all lags >= 0 the real parts z, of the lags -j,
            which stand at 2 M - j, the imaginary part at M - j
_taps       sums over a share of the batch of values of g times those of v conjugated, and back: the taps' gradient
_outer_in   a row, or taps, to work;  _outer_out  work to a row, or to taps;  _inner  what _convolve does, work to work

tables      F, then S: (2, N, N) float32, or bfloat16 (4, N, N), which are upper and lower terms; T (2, N1, N2) float32
spectrum    (H, [N0,] 2, N1, N2) float32      work (B, H, N0, 2, M) float32
precision   operands of two bfloat16 terms, of whose products the one of both lower terms is dropped (2^-17 an operand);
            WIDE: float32 operands in three tf32 products (2^-21). Sums and factors in float32
programs    one a row (or a channel, or a row of M of a longer one); of the outer kernels a tile of BJ x BN. The batch
            lies inside the channels: rows of one channel find its spectrum in the cache
cost        12 real products of N1 or N2 deep: 12 (N1 + N2) flops a sample, three times; all else once a row
"""

import triton
import triton.language as tl


# ------------------------------------------------------------------------------------------------------- the transform
@triton.jit
def _pair(ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Real and imaginary parts of a contiguous matrix."""
    at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    return tl.load(ptr + at), tl.load(ptr + ROWS * COLS + at)


@triton.jit
def _operand(x, WIDE: tl.constexpr):
    """x, or two bfloat16 terms of it."""
    if WIDE:
        return x, x
    else:  # what follows a return is compiled, too
        high = x.to(tl.bfloat16)
        return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _masked(ptr, mask):
    if mask is None:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=mask, other=0.0)


@triton.jit
def _operands(ptr, at, plane, mask, WIDE: tl.constexpr):
    """Of a table of them: real parts, imaginary parts; not WIDE: upper terms, two planes further the lower ones."""
    re = _masked(ptr + at, mask)
    im = _masked(ptr + plane + at, mask)
    if WIDE:
        return (re, re), (im, im)
    else:
        return (re, _masked(ptr + 2 * plane + at, mask)), (im, _masked(ptr + 3 * plane + at, mask))


@triton.jit
def _matrix(ptr, N: tl.constexpr, WIDE: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    return _operands(ptr, at, N * N, None, WIDE)


@triton.jit
def _trans(a):
    return tl.trans(a[0]), tl.trans(a[1])


@triton.jit
def _dot(a, b, acc, WIDE: tl.constexpr):
    if WIDE:
        return tl.dot(a[0], b[0], acc, input_precision="tf32x3")
    else:
        return tl.dot(a[0], b[0], tl.dot(a[0], b[1], tl.dot(a[1], b[0], acc)))


@triton.jit
def _values(re, im, matrix_ptr, table_ptr, COMPLEX: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Z of z = re + i im; not COMPLEX: im is not looked at."""
    zero = tl.zeros([N1, N2], tl.float32)
    fr, fi = _matrix(matrix_ptr, N1, WIDE)
    x = _operand(re, WIDE)
    ar, ai = _dot(fr, x, zero, WIDE), _dot(fi, x, zero, WIDE)
    if COMPLEX:
        y = _operand(im, WIDE)
        ar, ai = ar - _dot(fi, y, zero, WIDE), _dot(fr, y, ai, WIDE)
    tr, ti = _pair(table_ptr, N1, N2)
    br, bi = _operand(ar * tr - ai * ti, WIDE), _operand(ar * ti + ai * tr, WIDE)
    sr, si = _matrix(matrix_ptr + (2 if WIDE else 4) * N1 * N1, N2, WIDE)
    zr = _dot(br, sr, zero, WIDE) - _dot(bi, si, zero, WIDE)
    return zr, _dot(bi, sr, _dot(br, si, zero, WIDE), WIDE)


@triton.jit
def _back(zr, zi, matrix_ptr, table_ptr, COMPLEX: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """M times what has the values Z; not COMPLEX: its real part, twice."""
    zero = tl.zeros([N1, N2], tl.float32)
    x, y = _operand(zr, WIDE), _operand(zi, WIDE)
    sr, si = _matrix(matrix_ptr + (2 if WIDE else 4) * N1 * N1, N2, WIDE)
    br = _dot(y, si, _dot(x, sr, zero, WIDE), WIDE)
    bi = _dot(y, sr, zero, WIDE) - _dot(x, si, zero, WIDE)
    tr, ti = _pair(table_ptr, N1, N2)
    x, y = _operand(br * tr + bi * ti, WIDE), _operand(bi * tr - br * ti, WIDE)
    fr, fi = _matrix(matrix_ptr, N1, WIDE)
    fr, fi = _trans(fr), _trans(fi)
    re = _dot(fi, y, _dot(fr, x, zero, WIDE), WIDE)
    im = re
    if COMPLEX:
        im = _dot(fr, y, zero, WIDE) - _dot(fi, x, zero, WIDE)
    return re, im


@triton.jit
def _tile(N1: tl.constexpr, N2: tl.constexpr):
    """n of every element of a tile."""
    return tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]


# -------------------------------------------------------------------------------------------------- rows, taps, gates
@triton.jit
def _samples(x_ptr, gate_ptr, x_b, x_h, x_t, g_b, g_h, g_t, b, h, n, L):
    """Samples n of a row, times a gate if there is one, 0 past the end."""
    inside = (n >= 0) & (n < L)
    v = tl.load(x_ptr + b * x_b + h * x_h + n * x_t, mask=inside, other=0.0).to(tl.float32)
    if gate_ptr is not None:
        v *= tl.load(gate_ptr + b * g_b + h * g_h + n * g_t, mask=inside, other=0.0).to(tl.float32)
    return v


@triton.jit
def _put(
    x, v, out_ptr, out2_ptr, post_ptr, post2_ptr, skip_ptr, post_b, post_h, post_t, post2_b, post2_h, post2_t,
    b, h, n, H, L,
):  # fmt: skip
    """out = post (x + skip v), out2 the same with post2; both contiguous."""
    inside, at = n < L, (b * H + h) * L + n
    if skip_ptr is not None:
        x += tl.load(skip_ptr + h).to(tl.float32) * v
    y = x
    if post_ptr is not None:
        gate = tl.load(post_ptr + b * post_b + h * post_h + n * post_t, mask=inside, other=0.0)
        y = x * gate.to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
    if out2_ptr is not None:
        gate = tl.load(post2_ptr + b * post2_b + h * post2_h + n * post2_t, mask=inside, other=0.0)
        tl.store(out2_ptr + at, (x * gate.to(tl.float32)).to(out2_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _put_taps(re, im, dk_ptr, dk_reverse_ptr, row, n, points, ahead, back):
    """Lag n is the real part at n, lag -j the imaginary part at points - j."""
    tl.store(dk_ptr + row * ahead + n, re, mask=n < ahead)
    j = points - n
    tl.store(dk_reverse_ptr + row * back + j - 1, im, mask=(j >= 1) & (j <= back))


# ------------------------------------------------------------------------------------------- what one program holds
@triton.jit
def _filtered(zr, zi, spectrum_ptr, row, sign, N1: tl.constexpr, N2: tl.constexpr):
    kr, ki = _pair(spectrum_ptr + row * (2 * N1 * N2), N1, N2)
    ki *= sign
    return zr * kr - zi * ki, zr * ki + zi * kr


@triton.jit(do_not_specialize=["B", "H", "L"])
def _convolve(
    u_ptr, pre_ptr, post_ptr, post2_ptr, out_ptr, out2_ptr, skip_ptr, spectrum_ptr, matrix_ptr, table_ptr,
    u_b, u_h, u_t, pre_b, pre_h, pre_t, post_b, post_h, post_t, post2_b, post2_h, post2_t, sign, B, H, L,
    N1: tl.constexpr, N2: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """sign -1: with the conjugate spectrum, the adjoint."""
    row = tl.program_id(0).to(tl.int64)
    b, h, n = row % B, row // B, _tile(N1, N2)
    v = _samples(u_ptr, pre_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, b, h, n, L)
    zr, zi = _values(v, v, matrix_ptr, table_ptr, False, N1, N2, WIDE)
    zr, zi = _filtered(zr, zi, spectrum_ptr, h, sign, N1, N2)
    x, _ = _back(zr, zi, matrix_ptr, table_ptr, False, N1, N2, WIDE)
    if skip_ptr is not None:  # again, from the cache: v need not be kept until here
        v = _samples(u_ptr, pre_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, b, h, n, L)
    _put(
        x, v, out_ptr, out2_ptr, post_ptr, post2_ptr, skip_ptr, post_b, post_h, post_t, post2_b, post2_h, post2_t,
        b, h, n, H, L,
    )  # fmt: skip


@triton.jit(do_not_specialize=["ahead", "back"])
def _spectrum(
    k_ptr, k_reverse_ptr, work_ptr, spectrum_ptr, matrix_ptr, table_ptr, k_h, k_t, r_h, r_t, ahead, back, scale,
    LONG: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Of the taps of a channel; LONG: of a row of work."""
    row, n = tl.program_id(0).to(tl.int64), _tile(N1, N2)
    if LONG:
        re, im = _pair(work_ptr + row * (2 * N1 * N2), N1, N2)
    else:
        re = _samples(k_ptr, None, 0, k_h, k_t, 0, 0, 0, 0, row, n, ahead)
        im = re
        if k_reverse_ptr is not None:
            im = _samples(k_reverse_ptr, None, 0, r_h, r_t, 0, 0, 0, 0, row, N1 * N2 - 1 - n, back)
    zr, zi = _values(re, im, matrix_ptr, table_ptr, LONG or k_reverse_ptr is not None, N1, N2, WIDE)
    at = spectrum_ptr + row * (2 * N1 * N2) + n
    tl.store(at, scale * zr)
    tl.store(at + N1 * N2, scale * zi)


@triton.jit(do_not_specialize=["B", "H", "L", "each", "ahead", "back"])
def _taps(
    u_ptr, pre_ptr, dy_ptr, post_ptr, v_work_ptr, g_work_ptr, dk_ptr, dk_reverse_ptr, out_work_ptr,
    matrix_ptr, table_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, dy_b, dy_h, dy_t, post_b, post_h, post_t,
    scale, B, H, L, each, ahead, back,
    LONG: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """`each` rows of the batch for program (h, share); LONG: H counts rows of M, which lie in work, and go there."""
    h, share, n = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), _tile(N1, N2)
    sum_r, sum_i = tl.zeros([N1, N2], tl.float32), tl.zeros([N1, N2], tl.float32)
    for b in range(share * each, tl.minimum(B, (share + 1) * each)):
        at = (b * H + h) * (2 * N1 * N2)
        if LONG:
            re, im = _pair(v_work_ptr + at, N1, N2)
        else:
            re = _samples(u_ptr, pre_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, b, h, n, L)
            im = re
        vr, vi = _values(re, im, matrix_ptr, table_ptr, LONG, N1, N2, WIDE)
        if LONG:
            re, im = _pair(g_work_ptr + at, N1, N2)
        else:
            re = _samples(dy_ptr, post_ptr, dy_b, dy_h, dy_t, post_b, post_h, post_t, b, h, n, L)
            im = re
        gr, gi = _values(re, im, matrix_ptr, table_ptr, LONG, N1, N2, WIDE)
        sum_r += gr * vr + gi * vi
        sum_i += gi * vr - gr * vi
    re, im = _back(scale * sum_r, scale * sum_i, matrix_ptr, table_ptr, True, N1, N2, WIDE)
    row = share * H + h
    if LONG:
        tl.store(out_work_ptr + row * (2 * N1 * N2) + n, re)
        tl.store(out_work_ptr + row * (2 * N1 * N2) + N1 * N2 + n, im)
    else:
        _put_taps(re, im, dk_ptr, dk_reverse_ptr, row, n, N1 * N2, ahead, back)


# ------------------------------------------------------------------------------------------ rows that no program holds
@triton.jit(do_not_specialize=["B", "H", "N0"])
def _inner(
    work_ptr,
    spectrum_ptr,
    matrix_ptr,
    table_ptr,
    sign,
    B,
    H,
    N0,
    N1: tl.constexpr,
    N2: tl.constexpr,
    WIDE: tl.constexpr,
):
    """work: row (b, h, j0), filtered in place."""
    group = tl.program_id(0).to(tl.int64)
    b, row = group % B, group // B
    at = work_ptr + (b * H * N0 + row) * (2 * N1 * N2)
    re, im = _pair(at, N1, N2)
    zr, zi = _values(re, im, matrix_ptr, table_ptr, True, N1, N2, WIDE)
    zr, zi = _filtered(zr, zi, spectrum_ptr, row, sign, N1, N2)
    re, im = _back(zr, zi, matrix_ptr, table_ptr, True, N1, N2, WIDE)
    tl.debug_barrier()  # every thread has read its part of the row before any writes
    n = _tile(N1, N2)
    tl.store(at + n, re)
    tl.store(at + N1 * N2 + n, im)


@triton.jit
def _turn(turn_ptr, j0, column, N0, M: tl.constexpr, BN: tl.constexpr):
    """exp(-2 pi i n' (j0 + 1/4) / (N0 M)) at columns n' of one strip: that of its first column, times the rest's."""
    inside, fine, first = j0 < N0, j0 * BN + column % BN, j0 * (M // BN) + column // BN
    fr = tl.load(turn_ptr + fine, mask=inside, other=0.0)
    fi = tl.load(turn_ptr + N0 * BN + fine, mask=inside, other=0.0)
    coarse_ptr = turn_ptr + 2 * N0 * BN
    cr = tl.load(coarse_ptr + first, mask=inside, other=0.0)
    ci = tl.load(coarse_ptr + N0 * (M // BN) + first, mask=inside, other=0.0)
    return fr * cr - fi * ci, fr * ci + fi * cr


@triton.jit
def _outer_tile(N0, M: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr):
    """(row, rows of the outer matrix, columns) of this program."""
    strips, tiles = M // BN, tl.cdiv(N0, BJ)
    at = tl.program_id(0)
    row = (at // (strips * tiles)).to(tl.int64)
    return row, at % tiles * BJ + tl.arange(0, BJ), at // tiles % strips * BN + tl.arange(0, BN)


@triton.jit(do_not_specialize=["B", "H", "L", "N0", "back"])
def _outer_in(
    x_ptr, gate_ptr, back_ptr, work_ptr, matrix_ptr, turn_ptr, x_b, x_h, x_t, g_b, g_h, g_t, r_h, r_t,
    B, H, L, back, N0,
    M: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """x: rows, or the taps of lags >= 0; back: taps of lags < 0."""
    row, j0, column = _outer_tile(N0, M, BJ, BN)
    b, h = row % B, row // B
    ar = tl.zeros([BJ, BN], tl.float32)
    ai, minus = ar, ar
    for first in range(0, N0, 16):
        n0 = first + tl.arange(0, 16)
        n = n0[:, None].to(tl.int64) * M + column[None, :]
        at = j0[:, None] * N0 + n0[None, :]
        fr, fi = _operands(matrix_ptr, at, N0 * N0, (j0 < N0)[:, None], WIDE)
        v = _operand(_samples(x_ptr, gate_ptr, x_b, x_h, x_t, g_b, g_h, g_t, b, h, n, L), WIDE)
        ar, ai = _dot(fr, v, ar, WIDE), _dot(fi, v, ai, WIDE)
        if back_ptr is not None:
            v = _operand(
                -_samples(back_ptr, None, 0, r_h, r_t, 0, 0, 0, 0, h, N0.to(tl.int64) * M - 1 - n, back), WIDE
            )  # minus the imaginary part
            ar, minus = _dot(fi, v, ar, WIDE), _dot(fr, v, minus, WIDE)
    tr, ti = _turn(turn_ptr, j0[:, None], column[None, :], N0, M, BN)
    at = work_ptr + (((b * H + h) * N0 + j0[:, None]) * 2) * M + column[None, :]
    ai -= minus
    inside = (j0 < N0)[:, None]
    tl.store(at, ar * tr - ai * ti, mask=inside)
    tl.store(at + M, ar * ti + ai * tr, mask=inside)


@triton.jit(do_not_specialize=["B", "H", "L", "N0", "ahead", "back"])
def _outer_out(
    work_ptr, matrix_ptr, turn_ptr, u_ptr, pre_ptr, post_ptr, post2_ptr, out_ptr, out2_ptr, skip_ptr,
    dk_ptr, dk_reverse_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, post_b, post_h, post_t, post2_b, post2_h, post2_t,
    B, H, L, ahead, back, N0,
    TAPS: tl.constexpr, M: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """To rows as _convolve does; TAPS: to dk and dk_reverse."""
    row, n0, column = _outer_tile(N0, M, BJ, BN)
    b, h = row % B, row // B
    re = tl.zeros([BJ, BN], tl.float32)
    im, minus = re, re
    for first in range(0, N0, 16):
        j0 = first + tl.arange(0, 16)
        at = work_ptr + (((b * H + h) * N0 + j0[:, None]) * 2) * M + column[None, :]
        zr, zi = tl.load(at), tl.load(at + M)
        tr, ti = _turn(turn_ptr, j0[:, None], column[None, :], N0, M, BN)
        x, y = _operand(zr * tr + zi * ti, WIDE), _operand(zi * tr - zr * ti, WIDE)
        at = j0[None, :] * N0 + n0[:, None]
        fr, fi = _operands(matrix_ptr, at, N0 * N0, (n0 < N0)[:, None], WIDE)
        re = _dot(fi, y, _dot(fr, x, re, WIDE), WIDE)
        if TAPS:
            im, minus = _dot(fr, y, im, WIDE), _dot(fi, x, minus, WIDE)
    im -= minus
    n = n0[:, None].to(tl.int64) * M + column[None, :]
    if TAPS:
        _put_taps(re, im, dk_ptr, dk_reverse_ptr, row, n, N0.to(tl.int64) * M, ahead, back)
    else:
        v = re
        if skip_ptr is not None:
            v = _samples(u_ptr, pre_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, b, h, n, L)
        _put(
            re, v, out_ptr, out2_ptr, post_ptr, post2_ptr, skip_ptr, post_b, post_h, post_t, post2_b, post2_h, post2_t,
            b, h, n, H, L,
        )  # fmt: skip
