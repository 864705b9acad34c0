"""rms_norm in Triton.

forward    y = w x / d,  d = sqrt(ms + eps)  or  sqrt(ms) + eps,  ms = mean(x^2)      one program a row, in registers
backward   dx = w dy / d - x * mean(w dy x) * 2 d'(ms) / d^2                          one program a block of rows
           dw = sum over rows of dy x / d        each program adds its rows; torch adds the partial sums, in fixed order
shapes     x, y, dy, dx (M, D) row-contiguous; w (D,); partial dw (programs, D) float32
precision  statistics, products and dw in float32; y and dx rounded once to x's dtype
limits     D <= 65536; any M (0 too); compute capability 8.0 or newer
cost       forward 2 M D elements moved, backward 3 M D; 4 and 9 flops an element: bound by memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _forward(x_ptr, w_ptr, y_ptr, D, eps, INSIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    mask = col < D
    x = tl.load(x_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, axis=0) / D
    if INSIDE:
        denominator = tl.sqrt(mean_square + eps)
    else:
        denominator = tl.sqrt(mean_square) + eps
    y = x / denominator * w
    tl.store(y_ptr + row * D + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    x_ptr, w_ptr, dy_ptr, dx_ptr, dw_ptr, M, D, eps, ROWS: tl.constexpr, INSIDE: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    mask = col < D
    w = tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(0, ROWS):
        row = (program * ROWS + i).to(tl.int64)
        inside = mask & (row < M)
        x = tl.load(x_ptr + row * D + col, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * D + col, mask=inside, other=0.0).to(tl.float32)
        mean_square = tl.sum(x * x, axis=0) / D
        if INSIDE:
            root = tl.sqrt(mean_square + eps)
            denominator = root
        else:
            root = tl.sqrt(mean_square)
            denominator = root + eps
        along = tl.sum(w * dy * x, axis=0) / D
        dx = w * dy / denominator - x * (along / (tl.maximum(root, 1e-30) * denominator * denominator))
        tl.store(dx_ptr + row * D + col, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += tl.where(inside, dy * x / denominator, 0.0)
    tl.store(dw_ptr + program.to(tl.int64) * D + col, dw, mask=mask)


def _launch_shape(width: int) -> tuple[int, int]:
    block = triton.next_power_of_2(width)
    return block, min(16, max(1, block // 512))  # about 16 elements a thread


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float, eps_inside_sqrt: bool) -> torch.Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        block, warps = _launch_shape(x.shape[-1])
        rows = x.numel() // x.shape[-1]
        _forward[(rows,)](x, weight, y, x.shape[-1], eps, INSIDE=eps_inside_sqrt, BLOCK=block, num_warps=warps)
    return y


def backward(grads, outputs, x, weight, eps, eps_inside_sqrt, *, needs):
    (dy,) = grads
    if dy is None or not x.numel():
        return [None, None]
    x, dy, weight = x.contiguous(), dy.contiguous(), weight.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    block, warps = _launch_shape(width)
    per_program = max(1, triton.cdiv(rows, 512))
    programs = triton.cdiv(rows, per_program)
    dx = torch.empty_like(x)
    partial = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    _backward[(programs,)](
        x, weight, dy, dx, partial, rows, width, eps,
        ROWS=per_program, INSIDE=eps_inside_sqrt, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return [dx, partial.sum(0) if needs[1] else None]


#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (
        _forward,
        {"x_ptr": "*bf16", "w_ptr": "*bf16", "y_ptr": "*bf16", "D": "i32", "eps": "fp32"},
        {"INSIDE": True, "BLOCK": 4096},
    ),
    (
        _backward,
        {"x_ptr": "*bf16", "w_ptr": "*bf16", "dy_ptr": "*bf16", "dx_ptr": "*bf16", "dw_ptr": "*fp32"}
        | {"M": "i32", "D": "i32", "eps": "fp32"},
        {"ROWS": 8, "INSIDE": False, "BLOCK": 1024},
    ),
)
