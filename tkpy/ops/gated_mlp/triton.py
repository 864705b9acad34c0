"""gated_mlp in Triton: the gated product in one kernel with two accumulators, then linear's GEMM; the backward's
slopes are taken where dh leaves the accumulators. blockdiag_mlp's are of the same kernels, a group for each block.

forward    h = act(x W1^T) * (x W2^T), one program a tile of h: x is read once for both products, which are stored
           only for a backward; y = h W3^T
backward   dh = dy W3 is written nowhere: with the kept gate and value it becomes dvalue = dh act(gate),
           dgate = dh value act'(gate) and h = act(gate) value. dx = dgate W1 + dvalue W2 is one product over both;
           dW1 = dgate^T x, dW2 = dvalue^T x, dW3 = dy^T h. Where nothing was kept, gate and value again first
shapes     x (M, channels), W1, W2 (G, N, K), h, gate, value, slopes (M, G N); group g reads x's channels from gate and
           value on. Of the last group channels may be missing, of inputs and of h: they are taken as 0
precision  products of the inputs' dtype (float32: ieee, no tf32), sums, activation, gate and slopes in float32; h, the
           slopes and what is kept rounded once
limits     M, N, K < 2^31 - 512; compute capability 8.0 or newer
cost       6 M N K flops forward, 12 backward (G = 1, N outputs too). In matrices of h's size a forward moves h twice,
           gate and value once where they are kept; a backward reads those, writes slopes and h, reads h once and the
           slopes twice: ten
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.linear import triton as linear
from tkpy.ops.linear.triton import _activate, _add_product, _sigmoid, _tile_at

Pair = tuple[torch.Tensor, torch.Tensor]


@triton.jit
def _opened(g, ACTIVATION: tl.constexpr):
    """(act(g), act'(g)). float16 products that overflowed to -inf are as shut as -65504 is; a slope far above is 1."""
    g = tl.where(g < -65504.0, -65504.0, g)
    z = tl.where(g > 65504.0, 65504.0, g)
    if ACTIVATION == "relu":
        act, slope = tl.where(g < 0.0, 0.0, g), tl.where(g <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))  # the normal distribution, then its density
        act, slope = g * below, below + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == "gelu_tanh":  # as _activate has it
        s = _sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
        act, slope = g * s, s + z * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)
    else:  # silu
        s = _sigmoid(z)
        act, slope = g * s, s + z * s * (1.0 - s)
    return act, slope


@triton.jit
def _gated(
    x_ptr, w1_ptr, w2_ptr, h_ptr, gate_ptr, value_ptr, G, M, N, K, first_value, channels,
    x_m, x_k, w1_g, w1_n, w1_k, w2_g, w2_n, w2_k, h_m, kept_m,
    ACTIVATION: tl.constexpr, HALVES: tl.constexpr, H: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    g = (tl.program_id(0) % G).to(tl.int64)
    row, col = _tile_at(tl.program_id(0) // G, M, N, ROWS, COLS, GROUP)
    row_in, col_in = row < M, col < N
    of_gate, of_value = g * 0, g * 0  # first channels
    if HALVES:  # half-block g of the gate, and as many half-blocks further the value
        of_gate, of_value = g // 2 * K, (first_value + g) // 2 * K

    gate = tl.zeros([ROWS, COLS], dtype=tl.float32)
    value = tl.zeros([ROWS, COLS], dtype=tl.float32)
    for step in range(0, tl.cdiv(K, DEPTH)):
        k = (step * DEPTH + tl.arange(0, DEPTH)).to(tl.int64)
        weigh, at = (k < K)[:, None] & col_in[None, :], row[:, None] * x_m + (of_gate + k)[None, :] * x_k
        x = tl.load(x_ptr + at, mask=row_in[:, None] & ((k < K) & (of_gate + k < channels))[None, :], other=0.0)
        w1 = tl.load(w1_ptr + g * w1_g + k[:, None] * w1_k + col[None, :] * w1_n, mask=weigh, other=0.0)
        gate = tl.dot(x, w1, gate, input_precision="ieee")
        if HALVES:
            at = row[:, None] * x_m + (of_value + k)[None, :] * x_k
            x = tl.load(x_ptr + at, mask=row_in[:, None] & ((k < K) & (of_value + k < channels))[None, :], other=0.0)
        w2 = tl.load(w2_ptr + g * w2_g + k[:, None] * w2_k + col[None, :] * w2_n, mask=weigh, other=0.0)
        value = tl.dot(x, w2, value, input_precision="ieee")
    mask, to = row_in[:, None] & col_in[None, :], (g * N + col)[None, :]
    if H:
        h = _activate(gate, ACTIVATION) * value
        tl.store(h_ptr + row[:, None] * h_m + to, h.to(h_ptr.dtype.element_ty), mask=mask)
    if KEEP:
        to = row[:, None] * kept_m + to
        tl.store(gate_ptr + to, gate.to(gate_ptr.dtype.element_ty), mask=mask)
        tl.store(value_ptr + to, value.to(gate_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _slopes(
    dy_ptr, w_ptr, gate_ptr, value_ptr, dgate_ptr, dvalue_ptr, h_ptr, G, M, N, K, outputs, inner,
    dy_m, dy_k, w_g, w_k, w_n, kept_m, dz_m, h_m,
    ACTIVATION: tl.constexpr, DZ: tl.constexpr, H: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    g = (tl.program_id(0) % G).to(tl.int64)
    row, col = _tile_at(tl.program_id(0) // G, M, N, ROWS, COLS, GROUP)
    channel = (g * N + col)[None, :]
    row_in, col_in = row < M, (col < N) & (g * N + col < inner)
    dh = tl.zeros([ROWS, COLS], dtype=tl.float32)
    if DZ:
        depth = tl.maximum(0, tl.minimum(K, outputs - g * K))
        dy_ptr, w_ptr = dy_ptr + g * K * dy_k, w_ptr + g * w_g
        dh = _add_product(dh, dy_ptr, w_ptr, row, col, row_in, col_in, depth, dy_m, dy_k, w_k, w_n, DEPTH)

    mask, kept = row_in[:, None] & col_in[None, :], row[:, None] * kept_m + channel
    gate = tl.load(gate_ptr + kept, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(value_ptr + kept, mask=mask, other=0.0).to(tl.float32)
    act, slope = _opened(gate, ACTIVATION)
    if DZ:
        to = row[:, None] * dz_m + channel
        tl.store(dgate_ptr + to, (dh * value * slope).to(dgate_ptr.dtype.element_ty), mask=mask)
        tl.store(dvalue_ptr + to, (dh * act).to(dgate_ptr.dtype.element_ty), mask=mask)
    if H:
        tl.store(h_ptr + row[:, None] * h_m + channel, (act * value).to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _pair(
    a1_ptr, a2_ptr, b1_ptr, b2_ptr, c_ptr, M, N, K, a_m, b1_k, b1_n, b2_k, b2_n, c_m,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, col = _tile_at(tl.program_id(0), M, N, ROWS, COLS, GROUP)
    row_in, col_in = row < M, col < N
    c = tl.zeros([ROWS, COLS], dtype=tl.float32)
    c = _add_product(c, a1_ptr, b1_ptr, row, col, row_in, col_in, K, a_m, 1, b1_k, b1_n, DEPTH)
    c = _add_product(c, a2_ptr, b2_ptr, row, col, row_in, col_in, K, a_m, 1, b2_k, b2_n, DEPTH)
    at = c_ptr + row[:, None] * c_m + col[None, :]
    tl.store(at, c.to(c_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])


def _tile(rows: int, cols: int, dtype: torch.dtype, accumulators: int) -> dict[str, int]:
    """Tiles no larger than the problem; of `accumulators` in float32, 128 x 128 entries in all."""
    most = 32 if dtype == torch.float32 else 64
    height = min(2 * most, max(16, triton.next_power_of_2(rows)))
    width = min(2 * most // accumulators, max(16, triton.next_power_of_2(cols)))
    return {"ROWS": height, "COLS": width, "DEPTH": most, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def _grid(tile: dict[str, int], rows: int, cols: int, groups: int) -> tuple[int]:
    return (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(cols, tile["COLS"]) * groups,)


def gated(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    activation: str,
    *,
    h: torch.Tensor | None,
    kept: Pair | None = None,
    first_value: int | None = None,
) -> None:
    """h = act(x W1^T) * (x W2^T) for every group, and both products to `kept`: x (M, channels), w1 and w2 (G, N, K), of
    any strides, the others (M, G N), of contiguous rows; either may be None.

    `first_value`: the groups are half-blocks of K channels for each two, the value's from this half-block on.
    """
    (groups, cols, depth), (rows, channels) = w1.shape, x.shape
    if not rows * groups * cols:
        return
    gate, value = kept or (x, x)
    tile = _tile(rows, cols, x.dtype, 2)
    _gated[_grid(tile, rows, cols, groups)](
        x, w1, w2, x if h is None else h, gate, value, groups, rows, cols, depth, first_value or 0, channels,
        *x.stride(), *w1.stride(), *w2.stride(), 0 if h is None else h.stride(0), gate.stride(0),
        ACTIVATION=activation, HALVES=first_value is not None, H=h is not None, KEEP=kept is not None, **tile,
    )  # fmt: skip


def slopes(
    dy: torch.Tensor,
    weight: torch.Tensor,
    kept: Pair,
    activation: str,
    *,
    dz: Pair | None,
    h: torch.Tensor | None,
) -> None:
    """For dh = dy W, a group at a time: dz = (dh value act'(gate), dh act(gate)) and h = act(gate) * value.

    dy (M, outputs) and weight (G, K, N), any strides, the others (M, inner), of contiguous rows; dz or h may be None.
    """
    (groups, depth, cols), (gate, value), (rows, inner) = weight.shape, kept, kept[0].shape
    if not rows * groups * cols:
        return
    tile = _tile(rows, cols, dy.dtype, 2)
    _slopes[_grid(tile, rows, cols, groups)](
        dy, weight, gate, value, *(dz or kept), gate if h is None else h, groups, rows, cols, depth, dy.shape[1], inner,
        *dy.stride(), *weight.stride(), gate.stride(0), 0 if dz is None else dz[0].stride(0),
        0 if h is None else h.stride(0), ACTIVATION=activation, DZ=dz is not None, H=h is not None, **tile,
    )  # fmt: skip


def _sum_of_products(a: Pair, b: Pair) -> torch.Tensor:
    """a[0] b[0] + a[1] b[1]; a (M, K), of contiguous rows on one pitch; b (K, N), any strides."""
    rows, (depth, cols) = len(a[0]), b[0].shape
    c = a[0].new_empty(rows, cols)
    if c.numel():
        tile = _tile(rows, cols, c.dtype, 1)
        _pair[_grid(tile, rows, cols, 1)](
            *a, *b, c, rows, cols, depth, a[0].stride(0), *b[0].stride(), *b[1].stride(), cols, **tile
        )
    return c


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _halves(kept: torch.Tensor, rows: int) -> Pair:
    gate, value = kept.view(2, rows, kept.shape[-1])
    return gate, value


def forward(x, w1, w2, w3, activation, keep):
    rows, inner = _rows(x), len(w1)
    h = x.new_empty(len(rows), inner)
    kept = x.new_empty(2, *x.shape[:-1], inner if keep else 0)
    gated(rows, w1[None], w2[None], activation, h=h, kept=_halves(kept, len(rows)) if keep else None)
    return linear.product(h, w3.t()).view(*x.shape[:-1], w3.shape[0]), kept


def backward(grads, outputs, x, w1, w2, w3, activation, keep, *, needs):
    if grads[0] is None:
        return [None] * 4
    dy, rows, inner = _rows(grads[0]), _rows(x), len(w1)
    kept = _halves(outputs[0] if keep else x.new_empty(2, len(rows), inner), len(rows))
    if not keep:
        gated(rows, w1[None], w2[None], activation, h=None, kept=kept)
    h = torch.empty_like(kept[0]) if needs[3] else None
    dz = _halves(x.new_empty(2, len(rows), inner), len(rows)) if any(needs[:3]) else None
    slopes(dy, w3[None], kept, activation, dz=dz, h=h)
    dx = dw1 = dw2 = None
    if dz is not None:
        dx = _sum_of_products(dz, (w1, w2)).view(x.shape) if needs[0] else None
        dw1, dw2 = (linear.product(d.t(), rows) if need else None for d, need in zip(dz, needs[1:3], strict=True))
    return [dx, dw1, dw2, None if h is None else linear.product(dy.t(), h)]


_SIZES = ("G", "M", "N", "K", "first_value", "channels", "outputs", "inner")
_STRIDES = (
    "x_m", "x_k", "w1_g", "w1_n", "w1_k", "w2_g", "w2_n", "w2_k", "h_m", "kept_m",
    "dy_m", "dy_k", "w_g", "w_k", "w_n", "dz_m", "a_m", "b1_k", "b1_n", "b2_k", "b2_n", "c_m",
)  # fmt: skip
_TYPES = dict.fromkeys(_SIZES, "i32") | dict.fromkeys(_STRIDES, "i64")
_TILE = {"ROWS": 128, "COLS": 64, "DEPTH": 64, "GROUP": 8}
_ENTRIES = (
    (_gated, {"ACTIVATION": "silu", "HALVES": False, "H": True, "KEEP": True} | _TILE),
    (_gated, {"ACTIVATION": "gelu", "HALVES": True, "H": True, "KEEP": False} | _TILE),
    (_slopes, {"ACTIVATION": "silu", "DZ": True, "H": True} | _TILE),
    (_pair, _TILE | {"COLS": 128}),
)

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = tuple(
    (kernel, {name: _TYPES.get(name, "*bf16") for name in kernel.arg_names if name not in constants}, constants)
    for kernel, constants in _ENTRIES
)
