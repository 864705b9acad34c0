"""linear in Triton: one kernel, C = act(A B + bias) + residual; the backward is the same kernel on other strides.

forward    A = x (M, K), B = W^T (K, N)                one program a tile of C; tiles of a group of rows share B in L2
backward   z = x W^T + bias where there is an activation, dz = dy act'(z) by torch; dx = dz W, dW = dz^T x
shapes     A (M, K), B (K, N), bias (N,), residual (M, N), any strides; C (M, N) contiguous
precision  products of the inputs' dtype (float32: ieee, no tf32), sums, bias, activation and residual in float32;
           C rounded once, to the residual's dtype where there is one
limits     M, N, K < 2^31 - 512; any sizes (0 too); compute capability 8.0 or newer
cost       2 M N K flops; M K + K N + 2 M N elements moved at best
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.linear.eager import gradients


@triton.jit
def _sigmoid(z):
    small = tl.exp(-tl.abs(z))  # never overflows
    return tl.where(z < 0.0, small, 1.0) / (1.0 + small)


@triton.jit
def _tanh(z):
    square = z * z
    series = z * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(square < 0.01, series, 2.0 * _sigmoid(2.0 * z) - 1.0)  # which cancels near 0


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.where(z < 0.0, 0.0, z)  # NaN stays NaN
    elif ACTIVATION == "relu2":
        z = tl.where(z < 0.0, 0.0, z * z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # z (1 + tanh u) / 2 = z sigmoid(2 u),  u = sqrt(2 / pi) (z + 0.044715 z^3)
        z = z * _sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif ACTIVATION == "silu":
        z = z * _sigmoid(z)
    elif ACTIVATION == "sigmoid":
        z = _sigmoid(z)
    elif ACTIVATION == "tanh":
        z = _tanh(z)
    return z


@triton.jit
def _tile_at(tile, M, N, ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr):
    """Rows and columns of a tile of C. GROUP tiles of rows go through the columns together: they share B in L2."""
    tiles_n = tl.cdiv(N, COLS)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tl.cdiv(M, ROWS) - first, GROUP)
    inside = tile % (GROUP * tiles_n)
    row = ((first + inside % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = (inside // height * COLS + tl.arange(0, COLS)).to(tl.int64)
    return row, col


@triton.jit
def _add_product(c, a_ptr, b_ptr, row, col, row_in, col_in, K, a_m, a_k, b_k, b_n, DEPTH: tl.constexpr):
    """c + A B, of which A and B have K columns and rows."""
    for step in range(0, tl.cdiv(K, DEPTH)):
        k = (step * DEPTH + tl.arange(0, DEPTH)).to(tl.int64)
        a = tl.load(a_ptr + row[:, None] * a_m + k[None, :] * a_k, mask=row_in[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(b_ptr + k[:, None] * b_k + col[None, :] * b_n, mask=(k < K)[:, None] & col_in[None, :], other=0.0)
        c = tl.dot(a, b, c, input_precision="ieee")
    return c


@triton.jit
def _gemm(
    a_ptr, b_ptr, bias_ptr, residual_ptr, c_ptr, M, N, K,
    a_m, a_k, b_k, b_n, bias_n, residual_m, residual_n,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, col = _tile_at(tl.program_id(0), M, N, ROWS, COLS, GROUP)
    row_in, col_in = row < M, col < N
    c = tl.zeros([ROWS, COLS], dtype=tl.float32)
    c = _add_product(c, a_ptr, b_ptr, row, col, row_in, col_in, K, a_m, a_k, b_k, b_n, DEPTH)
    if BIAS:
        c += tl.load(bias_ptr + col * bias_n, mask=col_in, other=0.0).to(tl.float32)[None, :]
    c = _activate(c, ACTIVATION)
    mask = row_in[:, None] & col_in[None, :]
    if RESIDUAL:
        at = residual_ptr + row[:, None] * residual_m + col[None, :] * residual_n
        c += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(c_ptr + row[:, None] * N + col[None, :], c.to(c_ptr.dtype.element_ty), mask=mask)


def _tile(rows: int, cols: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles no larger than the problem (16 at least, for the tensor cores); float32 products take more registers."""
    most = 64 if dtype == torch.float32 else 128
    block_rows = min(most, max(16, triton.next_power_of_2(rows)))
    block_cols = min(most, max(16, triton.next_power_of_2(cols)))
    depth = 32 if dtype == torch.float32 else 64
    warps = 8 if block_rows * block_cols >= 128 * 128 else 4
    return {"ROWS": block_rows, "COLS": block_cols, "DEPTH": depth, "GROUP": 8, "num_warps": warps, "num_stages": 3}


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """act(a b + bias) + residual; a (M, K), b (K, N), any strides; contiguous."""
    (rows, depth), cols = a.shape, b.shape[1]
    c = a.new_empty(rows, cols, dtype=a.dtype if residual is None else residual.dtype)
    if not c.numel():
        return c
    tile = _tile(rows, cols, a.dtype)
    grid = (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(cols, tile["COLS"]),)
    _gemm[grid](
        a, b, a if bias is None else bias, a if residual is None else residual, c, rows, cols, depth,
        *a.stride(), *b.stride(), *((0,) if bias is None else bias.stride()),
        *((0, 0) if residual is None else residual.stride()),
        ACTIVATION=activation, BIAS=bias is not None, RESIDUAL=residual is not None, **tile,
    )  # fmt: skip
    return c


def forward(x, weight, bias, residual, activation):
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    added = None if residual is None else residual.reshape(rows.shape[0], weight.shape[0])
    return product(rows, weight.t(), bias, added, activation).view(*x.shape[:-1], weight.shape[0])


def backward(grads, outputs, x, weight, bias, residual, activation, *, needs):
    return gradients(product, grads, x, weight, bias, activation, needs)


_STRIDES = dict.fromkeys(("a_m", "a_k", "b_k", "b_n", "bias_n", "residual_m", "residual_n"), "i64")
_SIZES = dict.fromkeys(("M", "N", "K"), "i32")
_SQUARE = {"ROWS": 128, "COLS": 128, "DEPTH": 64, "GROUP": 8}


def _pointers(inputs: str, outer: str) -> dict[str, str]:
    return {"a_ptr": inputs, "b_ptr": inputs, "bias_ptr": inputs, "residual_ptr": outer, "c_ptr": outer}


#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (
        _gemm,
        _pointers("*bf16", "*bf16") | _SIZES | _STRIDES,
        {"ACTIVATION": "gelu", "BIAS": True, "RESIDUAL": True, **_SQUARE},
    ),
    (
        _gemm,
        _pointers("*fp16", "*fp32") | _SIZES | _STRIDES,
        {"ACTIVATION": "tanh", "BIAS": False, "RESIDUAL": True, **_SQUARE},
    ),
    (
        _gemm,
        _pointers("*fp32", "*fp32") | _SIZES | _STRIDES,
        {"ACTIVATION": None, "BIAS": False, "RESIDUAL": False, "ROWS": 64, "COLS": 64, "DEPTH": 32, "GROUP": 8},
    ),
)
