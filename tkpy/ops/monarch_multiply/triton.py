"""monarch_multiply in Triton: both products in one program where the blocks are small, else a product of blocks each
(tkpy/ops/blockdiag_linear/triton.py); permutations are strides either way.

forward    h[k, q] = sum_p w1[k, q, p] x[k, p], and where q = l, so that h[k, q] is what is read as h[r, l],
           y[s, l] = sum_k w2[l, s, k] h[k, l]: a program has some rows and some of the l and goes through the k, 16 at
           a time, so that h passes from the accumulators of one product to the operand of the other
backward   dx by the same kernel: dh[l, k] = sum_s w2[l, s, k] dy[s, l], dx[k, p] = sum_l w1[k, l, p] dh[l, k]. The
           factors' gradients in shares of the rows that torch adds in order: of small blocks by a kernel that makes h
           and dh again in registers, 16 of the k and of the l a program; else by products of blocks, from memory
shapes     x (rows, k p), h (rows, k q), y (rows, s l); w1 (k, q, p), w2 (l, s, r), any strides
precision  products of the inputs' dtype (float32: ieee, no tf32), sums in float32; h is rounded to it, as in eager.py
limits     one program: q = l, all sizes to 32, beyond which a tile reads more of the weights than h would move (both
           factors' gradients of float32: p and s to 16); compute capability 8.0 or newer
cost       2 rows (k q p + l s r) flops, backward twice as many, three times where h and dh are made again. One
           program moves x and y once (from L2 again for every 16 of the l), and h where it is kept; a backward of small
           blocks x once, dy twice and dx
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.blockdiag_linear.triton import channels_of, multiply, rows_of, weights_of

WIDEST = 32  # of every size, for one program
FEWEST_ROWS = 256  # of a share of the factors' gradients


@triton.jit
def _both(
    x_ptr, first_ptr, second_ptr, middle_ptr, y_ptr, M, A, B, D, E,
    x_a, x_m, x_d, f_a, f_b, f_d, s_b, s_e, s_a, h_a, h_m, h_b, y_b, y_m, y_e,
    KEEP: tl.constexpr, ROWS: tl.constexpr, OF_A: tl.constexpr, OF_B: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """h[a, b] = sum_d first[a, b, d] x[a, d], y[b, e] = sum_a second[b, e, a] h[a, b], of every row."""
    tiles = tl.cdiv(B, OF_B)
    row = (tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)).to(tl.int64)[None, :, None]
    b = (tl.program_id(0) % tiles * OF_B + tl.arange(0, OF_B)).to(tl.int64)
    e = tl.arange(0, WIDTH).to(tl.int64)[None, None, :]
    y = tl.zeros([OF_B, ROWS, WIDTH], dtype=tl.float32)
    for start in range(0, A, OF_A):
        a = (start + tl.arange(0, OF_A)).to(tl.int64)
        blocks, h = a[:, None, None], tl.zeros([OF_A, ROWS, OF_B], dtype=tl.float32)
        for step in range(0, D, DEPTH):
            d = (step + tl.arange(0, DEPTH)).to(tl.int64)
            deep, down, right = d[None, None, :], d[None, :, None], b[None, None, :]
            read = (blocks < A) & (row < M) & (deep < D)
            x = tl.load(x_ptr + blocks * x_a + row * x_m + deep * x_d, mask=read, other=0.0)
            read = (blocks < A) & (down < D) & (right < B)
            w = tl.load(first_ptr + blocks * f_a + right * f_b + down * f_d, mask=read, other=0.0)
            h = tl.dot(x, w, h, input_precision="ieee")
        h = h.to(x_ptr.dtype.element_ty)
        if KEEP:
            at = middle_ptr + blocks * h_a + row * h_m + b[None, None, :] * h_b
            tl.store(at, h, mask=(blocks < A) & (row < M) & (b < B)[None, None, :])
        down, out = a[None, :, None], b[:, None, None]
        read = (out < B) & (down < A) & (e < E)
        w = tl.load(second_ptr + out * s_b + e * s_e + down * s_a, mask=read, other=0.0)
        y = tl.dot(tl.permute(h, (2, 1, 0)), w, y, input_precision="ieee")
    out = b[:, None, None]
    at = y_ptr + out * y_b + row * y_m + e * y_e
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=(out < B) & (row < M) & (e < E))


@triton.jit
def _factors(
    x_ptr, dy_ptr, first_ptr, second_ptr, dfirst_ptr, dsecond_ptr, M, A, B, D, E, SHARE,
    x_a, x_m, x_d, dy_b, dy_m, dy_e, f_a, f_b, f_d, s_b, s_e, s_a,
    FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, OF_A: tl.constexpr, OF_B: tl.constexpr,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of a share of the rows: dfirst[a, b, d] = sum dh[b, a] x[a, d], dsecond[b, e, a] = sum dy[b, e] h[a, b], where h
    is as above and dh[b, a] = sum_e second[b, e, a] dy[b, e]."""
    tiles, share = tl.cdiv(B, OF_B), tl.program_id(1).to(tl.int64)
    a = (tl.program_id(0) // tiles * OF_A + tl.arange(0, OF_A)).to(tl.int64)
    b = (tl.program_id(0) % tiles * OF_B + tl.arange(0, OF_B)).to(tl.int64)
    d, e = tl.arange(0, DEPTH).to(tl.int64), tl.arange(0, WIDTH).to(tl.int64)
    a_out, b_out, a_in, b_in = a[:, None, None], b[:, None, None], a[None, None, :], b[None, None, :]
    d_mid, d_in, e_mid, e_in = d[None, :, None], d[None, None, :], e[None, :, None], e[None, None, :]
    of_first, of_second = (a_out < A) & (d_mid < D) & (b_in < B), (b_out < B) & (e_mid < E) & (a_in < A)
    first = tl.load(first_ptr + a_out * f_a + b_in * f_b + d_mid * f_d, mask=of_first, other=0.0)
    second = tl.load(second_ptr + b_out * s_b + e_mid * s_e + a_in * s_a, mask=of_second, other=0.0)
    dfirst = tl.zeros([OF_A, DEPTH, OF_B], dtype=tl.float32)
    dsecond = tl.zeros([OF_B, WIDTH, OF_A], dtype=tl.float32)
    for start in range(share * SHARE, tl.minimum(M, (share + 1) * SHARE), ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[None, :, None]
        read = (a_out < A) & (row < M) & (d_in < D)
        x = tl.load(x_ptr + a_out * x_a + row * x_m + d_in * x_d, mask=read, other=0.0)
        read = (b_out < B) & (row < M) & (e_in < E)
        dy = tl.load(dy_ptr + b_out * dy_b + row * dy_m + e_in * dy_e, mask=read, other=0.0)
        if SECOND:
            h = tl.dot(x, first, input_precision="ieee").to(x_ptr.dtype.element_ty)
            dsecond = tl.dot(tl.permute(dy, (0, 2, 1)), tl.permute(h, (2, 1, 0)), dsecond, input_precision="ieee")
        if FIRST:
            dh = tl.dot(dy, second, input_precision="ieee").to(x_ptr.dtype.element_ty)
            dfirst = tl.dot(tl.permute(x, (0, 2, 1)), tl.permute(dh, (2, 1, 0)), dfirst, input_precision="ieee")
    if FIRST:
        tl.store(dfirst_ptr + ((share * A + a_out) * B + b_in) * D + d_mid, dfirst, mask=of_first)
    if SECOND:
        tl.store(dsecond_ptr + ((share * B + b_out) * E + e_mid) * A + a_in, dsecond, mask=of_second)


def _at_once(w1: torch.Tensor, w2: torch.Tensor) -> bool:
    """Whether one program makes both products."""
    sizes = (*w1.shape, *w2.shape)
    return w1.shape[1] == w2.shape[0] and min(sizes) > 0 and max(sizes) <= WIDEST


def _through(x, first, second, y, middle, *, interleaved):
    """Both products, from x's blocks (A, D) by first (A, B, D) and second (B, E, A) to y's (B, E); what lies between
    goes to `middle` where that is not None. `interleaved`: x's blocks are, else y's."""
    (a, b, d), e, rows = first.shape, second.shape[1], len(x)
    if not rows:
        return
    read, write = (
        channels_of(x, a, d, interleaved=interleaved)[0],
        channels_of(y, b, e, interleaved=not interleaved)[0],
    )
    between = (0, 0, 0) if middle is None else channels_of(middle, a, b, interleaved=interleaved)[0].stride
    narrow, width = x.dtype != torch.float32, max(16, triton.next_power_of_2(e))
    most = (1024 if narrow else 512) // width
    tile = {"ROWS": min(most, max(16, triton.next_power_of_2(rows))), "OF_A": 16, "OF_B": 16, "WIDTH": width,
            "DEPTH": 16 if d <= 16 or not narrow else 32}  # fmt: skip
    _both[(triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(b, tile["OF_B"]),)](
        x, first, second, x if middle is None else middle, y, rows, a, b, d, e,
        *read.stride, *first.stride(), *second.stride(), *between, *write.stride,
        KEEP=middle is not None, **tile, num_warps=8, num_stages=1,
    )  # fmt: skip


def _sums_fit(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> bool:
    """Whether a program holds its part of both factors' gradients in registers."""
    return _at_once(w1, w2) and (x.dtype != torch.float32 or max(w1.shape[2], w2.shape[1]) <= 16)


def _sums(dy, x, w1, w2, *, of_first, of_second):
    """[dw1, dw2] as asked for: h and dh are made again, a share of the rows and 16 x 16 blocks a program."""
    (a, b, d), e, rows = w1.shape, w2.shape[1], len(x)
    depth, width = (16 if size <= 16 else 32 for size in (d, e))
    tiles = triton.cdiv(a, 16) * triton.cdiv(b, 16)
    tile = {"ROWS": 16 if x.dtype == torch.float32 else 512 // max(depth, width), "OF_A": 16, "OF_B": 16}
    shares = max(1, min(rows // FEWEST_ROWS, 512 // tiles))
    share = triton.cdiv(triton.cdiv(rows, shares), tile["ROWS"]) * tile["ROWS"]
    sums = [x.new_empty(shares, *w.shape, dtype=torch.float32) for w in (w1, w2)]
    read, write = channels_of(x, a, d)[0], channels_of(dy, b, e, interleaved=True)[0]
    _factors[(tiles, shares)](
        x, dy, w1, w2, *sums, rows, a, b, d, e, share, *read.stride, *write.stride, *w1.stride(), *w2.stride(),
        FIRST=of_first, SECOND=of_second, DEPTH=depth, WIDTH=width, **tile, num_warps=8, num_stages=1,
    )  # fmt: skip
    return [s.sum(0).to(x.dtype) if wanted else None for s, wanted in zip(sums, (of_first, of_second), strict=True)]


def _product(x, weight, y, *, interleaved):
    """Every block of x times its block of the weight, to the block of y in the same place."""
    blocks, outer, inner = weight.shape
    a, _ = channels_of(x, blocks, inner, interleaved=interleaved)
    c, cols = channels_of(y, blocks, outer, interleaved=interleaved)
    multiply(a, weights_of(weight).mT, c, cols=cols)


def _gradient(dy, x, weight, *, interleaved):
    """Of the weight of `_product`."""
    blocks, outer, inner = weight.shape
    grad, rows = channels_of(dy, blocks, outer, interleaved=interleaved)
    read, cols = channels_of(x, blocks, inner, interleaved=interleaved)
    return multiply(grad.mT, read, weights_of(weight.new_empty(weight.shape)), rows=rows, cols=cols)


def forward(x, w1, w2, keep):
    rows, width = rows_of(x), w1.shape[0] * w1.shape[1]
    y, at_once = x.new_empty(*x.shape[:-1], w2.shape[0] * w2.shape[1]), _at_once(w1, w2)
    middle = x.new_empty(*x.shape[:-1], width if keep else 0)
    between = rows_of(middle) if keep else None if at_once else rows.new_empty(len(rows), width)
    if at_once:
        _through(rows, w1, w2, rows_of(y), between, interleaved=False)
    else:
        _product(rows, w1, between, interleaved=False)
        _product(between, w2, rows_of(y), interleaved=True)
    return y, middle


def backward(grads, outputs, x, w1, w2, keep, *, needs):
    dy, dmiddle = (None if g is None else rows_of(g) for g in grads)
    rows, width = rows_of(x), w1.shape[0] * w1.shape[1]
    dx = dw1 = dw2 = through = None
    if dy is not None and dmiddle is None and (needs[1] or needs[2]) and _sums_fit(x, w1, w2):
        if needs[0]:
            dx = rows.new_empty(rows.shape)
            _through(dy, w2.mT, w1.mT, dx, None, interleaved=True)
        dw1, dw2 = _sums(dy, rows, w1, w2, of_first=needs[1], of_second=needs[2])
        return [dx if dx is None else dx.view(x.shape), dw1, dw2]
    if dy is not None and needs[2]:
        h = rows_of(outputs[0]) if keep else rows.new_empty(len(rows), width)
        if not keep:
            _product(rows, w1, h, interleaved=False)
        dw2 = _gradient(dy, h, w2, interleaved=True)
    if dy is not None and (needs[0] or needs[1]):
        at_once = needs[0] and dmiddle is None and _at_once(w1, w2)
        through = None if at_once and not needs[1] else rows.new_empty(len(rows), width)
        if at_once:
            dx = rows.new_empty(rows.shape)
            _through(dy, w2.mT, w1.mT, dx, through, interleaved=True)
        else:
            _product(dy, w2.mT, through, interleaved=True)
    if dmiddle is not None:  # of a caller of the torch op itself: the public function does not return h
        through = dmiddle if through is None else through + dmiddle
    if through is not None and needs[0] and dx is None:
        dx = rows.new_empty(rows.shape)
        _product(through, w1.mT, dx, interleaved=False)
    if through is not None and needs[1]:
        dw1 = _gradient(through, rows, w1, interleaved=False)
    return [dx if dx is None else dx.view(x.shape), dw1, dw2]


_SIZES = ("M", "A", "B", "D", "E", "SHARE")
_STRIDES = ("x_a", "x_m", "x_d", "f_a", "f_b", "f_d", "s_b", "s_e", "s_a", "h_a", "h_m", "h_b", "y_b", "y_m", "y_e")
_TYPES = (
    dict.fromkeys(_SIZES, "i32")
    | dict.fromkeys((*_STRIDES, "dy_b", "dy_m", "dy_e"), "i64")
    | dict.fromkeys(("dfirst_ptr", "dsecond_ptr"), "*fp32")
)
_TILE = {"OF_A": 16, "OF_B": 16, "DEPTH": 32, "WIDTH": 32}
_ENTRIES = (
    (_both, {"KEEP": False, "ROWS": 32} | _TILE),
    (_both, {"KEEP": True, "ROWS": 32} | _TILE),
    (_factors, {"FIRST": True, "SECOND": True, "ROWS": 16} | _TILE),
)

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = tuple(
    (kernel, {name: _TYPES.get(name, "*bf16") for name in kernel.arg_names if name not in constants}, constants)
    for kernel, constants in _ENTRIES
)
