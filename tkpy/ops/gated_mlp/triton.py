"""gated_mlp in Triton: the gated product in one kernel with two accumulators, then linear's GEMM.

forward    h = act(x W1^T) * (x W2^T), one program a tile of h: x is read once for both products, which are stored
           only for a backward; y = h W3^T. blockdiag_mlp's h is of the same kernel: G groups, whose gate and value
           come from other channels
backward   six products, slopes by torch; where nothing was kept, both inner products again by linear's GEMM
shapes     x (M, channels), W1, W2 (G, N, K), h (M, G N); group g reads x's channels from gate and value on (Groups)
precision  products of the inputs' dtype (float32: ieee, no tf32), sums, activation and gate in float32; h rounded once
limits     M, N, K < 2^31 - 512; compute capability 8.0 or newer
cost       4 M G N K flops; the forward moves x, W1, W2 and h, and h again for the last product
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.gated_mlp.eager import gradients
from tkpy.ops.linear import triton as linear
from tkpy.ops.linear.triton import _activate


@triton.jit
def _gated(
    x_ptr, w1_ptr, w2_ptr, h_ptr, kept1_ptr, kept2_ptr, M, N, K, first_value,
    x_m, x_k, w1_g, w1_n, w1_k, w2_g, w2_n, w2_k, h_m, kept_m,
    ACTIVATION: tl.constexpr, HALVES: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1).to(tl.int64)
    tiles_n = tl.cdiv(N, COLS)
    first = tl.program_id(0) // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tl.cdiv(M, ROWS) - first, GROUP)
    inside = tl.program_id(0) % (GROUP * tiles_n)
    row = ((first + inside % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = (inside // height * COLS + tl.arange(0, COLS)).to(tl.int64)
    row_in, col_in = row < M, col < N
    gate_ptr, value_ptr = x_ptr, x_ptr
    if HALVES:  # half-block g of the gate, and as many half-blocks further the value
        gate_ptr += g // 2 * K * x_k
        value_ptr += (first_value + g) // 2 * K * x_k

    gate = tl.zeros([ROWS, COLS], dtype=tl.float32)
    value = tl.zeros([ROWS, COLS], dtype=tl.float32)
    for step in range(0, tl.cdiv(K, DEPTH)):
        k = (step * DEPTH + tl.arange(0, DEPTH)).to(tl.int64)
        read, weigh = row_in[:, None] & (k < K)[None, :], (k < K)[:, None] & col_in[None, :]
        at = row[:, None] * x_m + k[None, :] * x_k
        x = tl.load(gate_ptr + at, mask=read, other=0.0)
        w1 = tl.load(w1_ptr + g * w1_g + k[:, None] * w1_k + col[None, :] * w1_n, mask=weigh, other=0.0)
        gate = tl.dot(x, w1, gate, input_precision="ieee")
        if HALVES:
            x = tl.load(value_ptr + at, mask=read, other=0.0)
        w2 = tl.load(w2_ptr + g * w2_g + k[:, None] * w2_k + col[None, :] * w2_n, mask=weigh, other=0.0)
        value = tl.dot(x, w2, value, input_precision="ieee")
    h = _activate(gate, ACTIVATION) * value
    mask = row_in[:, None] & col_in[None, :]
    tl.store(h_ptr + row[:, None] * h_m + g * N + col[None, :], h.to(h_ptr.dtype.element_ty), mask=mask)
    if KEEP:
        to = row[:, None] * kept_m + g * N + col[None, :]
        tl.store(kept1_ptr + to, gate.to(h_ptr.dtype.element_ty), mask=mask)
        tl.store(kept2_ptr + to, value.to(h_ptr.dtype.element_ty), mask=mask)


def gated(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    activation: str,
    kept: tuple[torch.Tensor, torch.Tensor] | None,
    first_value: int | None = None,
) -> torch.Tensor:
    """act(x W1^T) * (x W2^T) for every group: x (M, channels), w1 and w2 (G, N, K), any strides; (M, G N).

    `kept`: where both products go too, (M, G N) each on one pitch; or None.
    `first_value`: the groups are half-blocks of K channels for each two, the value's from this half-block on.
    """
    (groups, cols, depth), rows = w1.shape, len(x)
    h = x.new_empty(rows, groups * cols)
    if not h.numel():
        return h
    most = 32 if x.dtype == torch.float32 else 64
    sides = {"ROWS": min(2 * most, max(16, triton.next_power_of_2(rows))),
             "COLS": min(most, max(16, triton.next_power_of_2(cols)))}  # fmt: skip
    tiles = triton.cdiv(rows, sides["ROWS"]) * triton.cdiv(cols, sides["COLS"])
    gate, value = kept or (h, h)
    _gated[(tiles, groups)](
        x, w1, w2, h, gate, value, rows, cols, depth, first_value or 0,
        *x.stride(), *w1.stride(), *w2.stride(), h.stride(0), gate.stride(0),
        ACTIVATION=activation, HALVES=first_value is not None, KEEP=kept is not None, **sides,
        DEPTH=most, GROUP=8, num_warps=8, num_stages=3,
    )  # fmt: skip
    return h


def forward(x, w1, w2, w3, activation, keep):
    rows, inner = x.reshape(x.shape[:-1].numel(), x.shape[-1]), len(w1)
    kept = x.new_empty(2, *x.shape[:-1], inner if keep else 0)
    pair = tuple(kept.view(2, len(rows), inner)) if keep else None
    h = gated(rows, w1[None], w2[None], activation, pair)
    return linear.product(h, w3.t()).view(*x.shape[:-1], w3.shape[0]), kept


def backward(grads, outputs, x, w1, w2, w3, activation, keep, *, needs):
    return gradients(linear, grads, outputs, x, w1, w2, w3, activation, keep, needs)


_ARGUMENTS = (
    dict.fromkeys(("x_ptr", "w1_ptr", "w2_ptr", "h_ptr", "kept1_ptr", "kept2_ptr"), "*bf16")
    | dict.fromkeys(("M", "N", "K", "first_value"), "i32")
    | dict.fromkeys(("x_m", "x_k", "w1_g", "w1_n", "w1_k", "w2_g", "w2_n", "w2_k", "h_m", "kept_m"), "i64")
)
_TILE = {"ROWS": 128, "COLS": 64, "DEPTH": 64, "GROUP": 8}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_gated, _ARGUMENTS, {"ACTIVATION": "silu", "HALVES": False, "KEEP": True} | _TILE),
    (_gated, _ARGUMENTS, {"ACTIVATION": "gelu", "HALVES": True, "KEEP": False} | _TILE),
)
