"""layer_norm in Triton.

forward    y = w xhat + b,  xhat = (x - mean) r,  r = 1 / sqrt(var + eps)
           D <= 16384: one program a row, the row in registers; wider: chunk by chunk, moments merged as they come
backward   dx = r (g - mean(g) - xhat mean(g xhat)),  g = w dy;   dw = sum of dy xhat,  db = sum of dy
           D <= 16384: one program a block of rows, which adds its rows of dw and db; wider: dx by rows, then dw
           and db by columns. torch adds the partial sums, in fixed order
shapes     x, y, dy, dx (M, D) row-contiguous; w, b (D,); mean, r (M,) float32; partial dw, db (programs, D) float32
precision  statistics, products, dw and db in float32, the variance about the mean (no cancellation); y, dx rounded once
limits     any M and D (0 too) below 2^31; compute capability 8.0 or newer
cost       forward 2 M D elements moved (wide: 3), backward 3 M D (wide: 7); 8 and 14 flops an element: bound by memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WHOLE = 16384  # widest row held in registers
CHUNK = 4096


@triton.jit
def _forward(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, r_ptr, D, eps, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    mask = col < D
    x = tl.load(x_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / D
    centred = tl.where(mask, x - mean, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / D + eps)
    y = centred * r
    if WEIGHT:
        y *= tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(b_ptr + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + col, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean)
    tl.store(r_ptr + row, r)


@triton.jit
def _forward_wide(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, r_ptr, D, eps, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    """Chan, Golub and LeVeque 1979, eq. 2.1: the moments of a union of two samples."""
    row = tl.program_id(0).to(tl.int64)
    mean = 0.0
    squares = 0.0
    for start in range(0, D, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < D
        x = tl.load(x_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(BLOCK, D - start).to(tl.float32)
        here = tl.sum(x, axis=0) / count
        centred = tl.where(mask, x - here, 0.0)
        delta = here - mean
        share = count / (count + start)
        squares += tl.sum(centred * centred, axis=0) + delta * delta * start * share
        mean += delta * share
    r = 1.0 / tl.sqrt(squares / D + eps)
    for start in range(0, D, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < D
        y = (tl.load(x_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32) - mean) * r
        if WEIGHT:
            y *= tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
        if BIAS:
            y += tl.load(b_ptr + col, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * D + col, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean)
    tl.store(r_ptr + row, r)


@triton.jit
def _backward(
    x_ptr, w_ptr, dy_ptr, mean_ptr, r_ptr, dx_ptr, dw_ptr, db_ptr, M, D,
    ROWS: tl.constexpr, WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    mask = col < D
    w = tl.full([BLOCK], 1.0, tl.float32)
    if WEIGHT:
        w = tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    db = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(0, ROWS):
        row = (program * ROWS + i).to(tl.int64)
        inside = mask & (row < M)
        x = tl.load(x_ptr + row * D + col, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * D + col, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < M, other=0.0)
        r = tl.load(r_ptr + row, mask=row < M, other=0.0)
        xhat = tl.where(inside, (x - mean) * r, 0.0)
        g = w * dy
        dx = r * (g - tl.sum(g, axis=0) / D - xhat * (tl.sum(g * xhat, axis=0) / D))
        tl.store(dx_ptr + row * D + col, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += dy * xhat
        db += dy
    at = program.to(tl.int64) * D + col
    tl.store(dw_ptr + at, dw, mask=mask)
    tl.store(db_ptr + at, db, mask=mask)


@triton.jit
def _backward_rows(x_ptr, w_ptr, dy_ptr, mean_ptr, r_ptr, dx_ptr, D, WEIGHT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    mean = tl.load(mean_ptr + row)
    r = tl.load(r_ptr + row)
    total = 0.0
    along = 0.0
    for start in range(0, D, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < D
        g = tl.load(dy_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
        if WEIGHT:
            g *= tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(g, axis=0)
        along += tl.sum(g * (x - mean) * r, axis=0)
    for start in range(0, D, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < D
        g = tl.load(dy_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
        if WEIGHT:
            g *= tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
        dx = r * (g - total / D - (x - mean) * r * (along / D))
        tl.store(dx_ptr + row * D + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_columns(x_ptr, dy_ptr, mean_ptr, r_ptr, dw_ptr, db_ptr, M, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(1)
    col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = col < D
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    db = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(0, ROWS):
        row = (program * ROWS + i).to(tl.int64)
        inside = mask & (row < M)
        x = tl.load(x_ptr + row * D + col, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * D + col, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < M, other=0.0)
        r = tl.load(r_ptr + row, mask=row < M, other=0.0)
        dw += dy * (x - mean) * r
        db += dy
    at = program.to(tl.int64) * D + col
    tl.store(dw_ptr + at, dw, mask=mask)
    tl.store(db_ptr + at, db, mask=mask)


def _launch_shape(width: int) -> tuple[int, int]:
    block = triton.next_power_of_2(width)
    return block, min(16, max(1, block // 512))  # about 16 elements a thread


def _or(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A pointer must point somewhere: an absent parameter is never read."""
    return other if x is None else x.contiguous()


def forward(x, weight, bias, eps):
    x = x.contiguous()
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    y = torch.empty_like(x)
    mean, r = (x.new_zeros(*x.shape[:-1], 1, dtype=torch.float32) for _ in range(2))
    if x.numel():
        kernel, (block, warps) = (_forward, _launch_shape(width)) if width <= WHOLE else (_forward_wide, (CHUNK, 8))
        kernel[(rows,)](
            x, _or(weight, x), _or(bias, x), y, mean, r, width, eps,
            WEIGHT=weight is not None, BIAS=bias is not None, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return y, mean, r


def backward(grads, outputs, x, weight, bias, eps, *, needs):
    (dy, *_), (mean, r) = grads, outputs
    if dy is None or not x.numel():
        return [None, None, None]
    x, dy, w = x.contiguous(), dy.contiguous(), _or(weight, x)
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    whole = width <= WHOLE
    per_program = max(1, triton.cdiv(rows, 512 if whole else 64))
    programs = triton.cdiv(rows, per_program)
    dx = torch.empty_like(x)
    dw, db = (torch.empty(programs, width, dtype=torch.float32, device=x.device) for _ in range(2))
    if whole:
        block, warps = _launch_shape(width)
        _backward[(programs,)](
            x, w, dy, mean, r, dx, dw, db, rows, width,
            ROWS=per_program, WEIGHT=weight is not None, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    else:
        _backward_rows[(rows,)](x, w, dy, mean, r, dx, width, WEIGHT=weight is not None, BLOCK=CHUNK, num_warps=8)
        if needs[1] or needs[2]:
            grid = (triton.cdiv(width, 1024), programs)
            _backward_columns[grid](x, dy, mean, r, dw, db, rows, width, ROWS=per_program, BLOCK=1024, num_warps=4)
    return [dx, dw.sum(0) if needs[1] else None, db.sum(0) if needs[2] else None]


def _types(*names: str) -> dict[str, str]:
    statistics = ("mean_ptr", "r_ptr", "dw_ptr", "db_ptr")
    return {
        n: "*fp32" if n in statistics else "*bf16" if n.endswith("_ptr") else "fp32" if n == "eps" else "i32"
        for n in names
    }


_FORWARD = _types("x_ptr", "w_ptr", "b_ptr", "y_ptr", "mean_ptr", "r_ptr", "D", "eps")
_BACKWARD = _types("x_ptr", "w_ptr", "dy_ptr", "mean_ptr", "r_ptr", "dx_ptr", "dw_ptr", "db_ptr", "M", "D")
_COLUMNS = _types("x_ptr", "dy_ptr", "mean_ptr", "r_ptr", "dw_ptr", "db_ptr", "M", "D")
_ROWS = _types("x_ptr", "w_ptr", "dy_ptr", "mean_ptr", "r_ptr", "dx_ptr", "D")

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_forward, _FORWARD, {"WEIGHT": True, "BIAS": True, "BLOCK": 4096}),
    (_forward_wide, _FORWARD, {"WEIGHT": True, "BIAS": False, "BLOCK": CHUNK}),
    (_backward, _BACKWARD, {"ROWS": 32, "WEIGHT": True, "BLOCK": 4096}),
    (_backward_rows, _ROWS, {"WEIGHT": True, "BLOCK": CHUNK}),
    (_backward_columns, _COLUMNS, {"ROWS": 32, "BLOCK": 1024}),
)
