"""blockdiag_linear in Triton: one kernel, C_g = A_g B_g + bias for every block g; the backward is the same kernel.

forward    A_g = x's channels of block g, B_g = weight[g]^T, C_g = y's channels of block g
backward   dx = dy W;  dW_g = dy_g^T x_g, a share of the rows a program where blocks are small, added by torch
channels   a dimension that holds channels of x or of y says which one entry j of block g is: f = g per_block + j step,
           after the shuffle (f mod G) per_block + f div G. Padding, cropping and the shuffle are in that number and
           nothing is copied. Channels beyond the last read as 0
programs   tile of C x block x share of K; blocks vary fastest, so that interleaved blocks share the lines they write
shapes     A (G, M, K), B (G, K, N), C (G, M, N), any strides; bias one a channel of N
precision  products of the inputs' dtype (float32: ieee, no tf32), sums and bias in float32, C rounded once
limits     M, N, K, channels < 2^31 - 512; compute capability 8.0 or newer
cost       2 G M N K flops; A, B, C moved once where K, N fit a tile
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

_SIZES = ["M", "N", "K", "m_block", "m_step", "m_end", "n_block", "n_step", "n_end", "k_block", "k_step", "k_end"]


class Channels(NamedTuple):
    """Entry j of block g is channel f = g * per_block + j * step, 0 from channel `end` on."""

    per_block: int
    step: int
    end: int


ALL = Channels(0, 0, 1)  # a dimension of rows, or of a weight: every entry exists


class Blocks(NamedTuple):
    """One operand: `size` (G, rows, columns) with `stride`, of which the entries that exist lie in `tensor`."""

    tensor: torch.Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    shuffled: bool = False  # columns are found by channel, with the last stride

    @property
    def mT(self) -> Blocks:
        (g, m, n), (s_g, s_m, s_n) = self.size, self.stride
        return Blocks(self.tensor, (g, n, m), (s_g, s_n, s_m))


@triton.jit(do_not_specialize=["G", *_SIZES, "SHARE"])
def _blocks(
    a_ptr, b_ptr, bias_ptr, c_ptr, G, M, N, K, SHARE,
    a_g, a_m, a_k, b_g, b_k, b_n, bias_n, c_share, c_g, c_m, c_n,
    m_block, m_step, m_end, n_block, n_step, n_end, k_block, k_step, k_end,
    BIAS: tl.constexpr, CROP: tl.constexpr, SHUFFLED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    g, tile = (tl.program_id(0) % G).to(tl.int64), tl.program_id(0) // G
    tiles_n = tl.cdiv(N, COLS)
    row = (tile // tiles_n * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = (tile % tiles_n * COLS + tl.arange(0, COLS)).to(tl.int64)
    row_in = (row < M) & (g * m_block + row * m_step < m_end)
    channel = g * n_block + col * n_step
    if SHUFFLED == "b" or SHUFFLED == "c":
        channel = channel % G * n_block + channel // G
    col_in = (col < N) & (channel < n_end)
    first = tl.program_id(1) * SHARE
    last = tl.minimum(K, first + SHARE)

    c = tl.zeros([ROWS, COLS], dtype=tl.float32)
    for step in range(first, last, DEPTH):
        k = (step + tl.arange(0, DEPTH)).to(tl.int64)
        read = g * k_block + k * k_step
        if SHUFFLED == "a":
            read = read % G * k_block + read // G
        deep = (k < last) & (read < k_end)
        a_at = a_ptr + g * a_g + row[:, None] * a_m + (read if SHUFFLED == "a" else k)[None, :] * a_k
        b_at = b_ptr + g * b_g + k[:, None] * b_k + (channel if SHUFFLED == "b" else col)[None, :] * b_n
        a = tl.load(a_at, mask=row_in[:, None] & deep[None, :], other=0.0)
        b = tl.load(b_at, mask=deep[:, None] & col_in[None, :], other=0.0)
        c = tl.dot(a, b, c, input_precision="ieee")
    if BIAS:
        c += tl.load(bias_ptr + channel * bias_n, mask=col_in, other=0.0).to(tl.float32)[None, :]
    place = channel if SHUFFLED == "c" else col
    at = c_ptr + tl.program_id(1).to(tl.int64) * c_share + g * c_g + row[:, None] * c_m + place[None, :] * c_n
    if CROP:  # channels beyond the end have no place in C
        tl.store(at, c.to(c_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])
    else:  # they have one, and are 0
        tl.store(at, c.to(c_ptr.dtype.element_ty), mask=(row < M)[:, None] & (col < N)[None, :])


def _tile(rows: int, cols: int, deep: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles no larger than the block (16 at least, for the tensor cores); float32 products take more registers."""
    most = 64 if dtype == torch.float32 else 128
    sides = [min(most, max(16, triton.next_power_of_2(size))) for size in (rows, cols)]
    depth = min(32 if dtype == torch.float32 else 64, max(16, triton.next_power_of_2(deep)))
    warps = 8 if sides[0] * sides[1] >= 128 * 128 else 4
    return {"ROWS": sides[0], "COLS": sides[1], "DEPTH": depth, "num_warps": warps, "num_stages": 3}


def multiply(
    a: Blocks,
    b: Blocks,
    c: Blocks,
    *,
    bias: torch.Tensor | None = None,
    rows: Channels = ALL,
    cols: Channels = ALL,
    deep: Channels = ALL,
) -> torch.Tensor:
    """c[g] = a[g] b[g] + bias[channels of g]; returns c's tensor.

    `rows`, `cols`, `deep`: what M, N, K hold, if they hold channels. With `rows`, c is the gradient of a weight: its
    entries in channels that do not exist are 0. Without, c holds channels: those that do not exist are no part of it.
    """
    (blocks, m, n), k = c.size, a.size[2]
    if not blocks * m * n:
        return c.tensor
    is_weight = rows != ALL
    shuffled = next((name for name, x in (("a", a), ("b", b), ("c", c)) if x.shuffled), None)
    tile = _tile(m, n, k, a.tensor.dtype)
    tiles = triton.cdiv(m, tile["ROWS"]) * triton.cdiv(n, tile["COLS"])
    shares = max(1, min(k // (8 * tile["DEPTH"]), 512 // (tiles * blocks))) if is_weight else 1
    share = max(1, triton.cdiv(triton.cdiv(k, shares), tile["DEPTH"])) * tile["DEPTH"]
    out = c.tensor if shares == 1 else c.tensor.new_empty(shares, *c.size, dtype=torch.float32)
    _blocks[(tiles * blocks, shares)](
        a.tensor, b.tensor, a.tensor if bias is None else bias, out, blocks, m, n, k, share, *a.stride, *b.stride,
        0 if bias is None else bias.stride(0), *((0, *c.stride) if shares == 1 else out.stride()),
        *rows, *cols, *deep, BIAS=bias is not None, CROP=not is_weight, SHUFFLED=shuffled, **tile,
    )  # fmt: skip
    return c.tensor if shares == 1 else out.sum(0).to(c.tensor.dtype)


def channels_of(
    x: torch.Tensor, blocks: int, width: int, *, interleaved: bool = False, shuffled: bool = False
) -> tuple[Blocks, Channels]:
    """(rows, channels) as blocks of `width` channels in a row, (interleaved) of every `blocks`-th, or (shuffled) so."""
    (rows, end), (row, step) = x.shape, x.stride()
    channels = Channels(1, blocks, end) if interleaved else Channels(width, 1, end)
    stride = (0 if shuffled else channels.per_block * step, row, channels.step * step)
    return Blocks(x, (blocks, rows, width), stride, shuffled), channels


def weights_of(weight: torch.Tensor) -> Blocks:
    g, m, n = weight.shape
    return Blocks(weight, (g, m, n), weight.stride())


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """(..., n) -> (rows, n), also where a size is 0."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def forward(x, weight, bias, shuffle, out_features):
    nblocks, o, i = weight.shape
    y = x.new_empty(*x.shape[:-1], out_features)
    a, deep = channels_of(rows_of(x), nblocks, i, shuffled=shuffle)
    c, cols = channels_of(rows_of(y), nblocks, o)
    multiply(a, weights_of(weight).mT, c, bias=bias, cols=cols, deep=deep)
    return y


def backward(grads, outputs, x, weight, bias, shuffle, out_features, *, needs):
    (dy,) = grads
    if dy is None:
        return [None, None, None]
    nblocks, o, i = weight.shape
    grad, outer = channels_of(rows_of(dy), nblocks, o)
    read, inner = channels_of(rows_of(x), nblocks, i, shuffled=shuffle)
    dx = dw = db = None
    if needs[0]:
        dx = x.new_zeros(x.shape) if not o else x.new_empty(x.shape)
        place, inner = channels_of(rows_of(dx), nblocks, i, shuffled=shuffle)
        multiply(grad, weights_of(weight), place, cols=inner, deep=outer)
    if needs[1]:
        dw = multiply(grad.mT, read, weights_of(weight.new_empty(weight.shape)), rows=outer, cols=inner)
    if needs[2]:
        db = rows_of(dy).sum(0)
    return [dx, dw, db]


_ARGUMENTS = (
    dict.fromkeys(("a_ptr", "b_ptr", "bias_ptr", "c_ptr"), "*bf16")
    | dict.fromkeys(("G", *_SIZES, "SHARE"), "i32")
    | dict.fromkeys(("a_g", "a_m", "a_k", "b_g", "b_k", "b_n", "bias_n", "c_share", "c_g", "c_m", "c_n"), "i64")
)
_TILE = {"ROWS": 128, "COLS": 128, "DEPTH": 64}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_blocks, _ARGUMENTS, {"BIAS": True, "CROP": True, "SHUFFLED": "a"} | _TILE),
    (_blocks, _ARGUMENTS | {"c_ptr": "*fp32"}, {"BIAS": False, "CROP": False, "SHUFFLED": None} | _TILE),
)
