"""group_norm in Triton: a tile of rows of one head, whole heads in registers.

forward    y = (w n + b) silu(gate),  n = (x - mean) r,  r = 1 / sqrt(var + eps)
backward   h = dy silu(gate), g = w h:  dx = r (g - mean(g) - n mean(g n)),  dgate = dy (w n + b) silu'(gate);
           dw = sum of h n, db = sum of h: a share a tile, which torch adds in fixed order
shapes     x, gate, dy, y (rows, H, N) contiguous; w, b (H, N); mean, r (rows, H); shares (tiles, 2, H, N) float32
precision  float32, the variance about the mean (no cancellation); y, dx and dgate rounded once
limits     N <= 16384; compute capability 8.0 or newer
cost       3 elements moved an element, backward 5: bound by memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _load(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _affine(normal, w_ptr, b_ptr, h, n, N, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    if WEIGHT:
        normal *= _load(w_ptr, h * N + n, n < N)[None, :]
    if BIAS:
        normal += _load(b_ptr, h * N + n, n < N)[None, :]
    return normal


@triton.jit(do_not_specialize=["rows", "H"])
def _forward(
    x_ptr, w_ptr, b_ptr, gate_ptr, y_ptr, mean_ptr, r_ptr, rows, H, N, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    h, n = tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (n < N)[None, :]
    at = (row * H + h)[:, None] * N + n[None, :]
    x = _load(x_ptr, at, mask)
    mean = tl.sum(x, 1) / N
    centred = tl.where(mask, x - mean[:, None], 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / N + eps)
    y = _affine(centred * r[:, None], w_ptr, b_ptr, h, n, N, WEIGHT, BIAS)
    if GATE:
        gate = _load(gate_ptr, at, mask)
        y *= gate / (1.0 + tl.exp(-gate))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row * H + h, mean, mask=row < rows)
    tl.store(r_ptr + row * H + h, r, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "H"])
def _backward(
    x_ptr, w_ptr, b_ptr, gate_ptr, dy_ptr, mean_ptr, r_ptr, dx_ptr, dgate_ptr, share_ptr, rows, H, N,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    h, n = tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (n < N)[None, :]
    at = (row * H + h)[:, None] * N + n[None, :]
    mean = _load(mean_ptr, row * H + h, row < rows)[:, None]
    r = _load(r_ptr, row * H + h, row < rows)[:, None]
    normal = tl.where(mask, (_load(x_ptr, at, mask) - mean) * r, 0.0)
    through = _load(dy_ptr, at, mask)
    if GATE:
        gate = _load(gate_ptr, at, mask)
        s = 1.0 / (1.0 + tl.exp(-gate))
        dgate = through * _affine(normal, w_ptr, b_ptr, h, n, N, WEIGHT, BIAS) * s * (1.0 + gate * (1.0 - s))
        tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
        through *= gate * s
    share = share_ptr + (tl.program_id(0).to(tl.int64) * 2 * H + h) * N + n
    tl.store(share, tl.sum(through * normal, 0), mask=n < N)
    tl.store(share + H.to(tl.int64) * N, tl.sum(through, 0), mask=n < N)
    g = _affine(through, w_ptr, b_ptr, h, n, N, WEIGHT, False)
    dx = r * (g - (tl.sum(g, 1) / N)[:, None] - normal * (tl.sum(g * normal, 1) / N)[:, None])
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _tile(x: torch.Tensor) -> dict[str, int]:
    """4096 elements, or one row."""
    wide = triton.next_power_of_2(x.shape[-1])
    rows = max(1, min(4096 // wide, triton.next_power_of_2(x.shape[:-2].numel())))
    return {"ROWS": rows, "BLOCK": wide, "num_warps": 4 if wide * rows <= 4096 else 8}


def _parameters(x, weight, bias, gate):
    """Pointers (an absent tensor is never read) and which are present."""
    given = {"WEIGHT": weight is not None, "BIAS": bias is not None, "GATE": gate is not None}
    return [x if t is None else t.contiguous() for t in (weight, bias, gate)], given


def forward(x, weight, bias, gate, eps):
    x = x.contiguous()
    y = torch.empty_like(x)
    mean, inverse = (x.new_zeros(*x.shape[:-1], 1, dtype=torch.float32) for _ in range(2))
    if x.numel():
        tile, (heads, size) = _tile(x), x.shape[-2:]
        rows = x.shape[:-2].numel()
        pointers, given = _parameters(x, weight, bias, gate)
        # With fused products, lanes that hold copies of one sum differ in its last bit, and race to store it.
        _forward[(triton.cdiv(rows, tile["ROWS"]), heads)](
            x, *pointers, y, mean, inverse, rows, heads, size, eps, **given, **tile, enable_fp_fusion=False
        )
    return y, mean, inverse


def backward(grads, outputs, x, weight, bias, gate, eps, *, needs):
    (dy, *_), (mean, inverse) = grads, outputs
    if dy is None or not x.numel():
        return [None, None, None, None]
    x = x.contiguous()
    tile, (heads, size), rows = _tile(x), x.shape[-2:], x.shape[:-2].numel()
    pointers, given = _parameters(x, weight, bias, gate)
    dx, dgate = torch.empty_like(x), torch.empty_like(x) if gate is not None else None
    tiles = triton.cdiv(rows, tile["ROWS"])
    shares = x.new_empty(tiles, 2, heads, size, dtype=torch.float32)
    _backward[(tiles, heads)](
        x, *pointers, dy.contiguous(), mean, inverse, dx, dx if dgate is None else dgate, shares, rows, heads, size,
        **given, **tile, enable_fp_fusion=False,
    )  # fmt: skip
    dweight, dbias = shares.sum(0)
    return [dx, dweight if weight is not None else None, dbias if bias is not None else None, dgate]


_ARGUMENTS = (
    dict.fromkeys(("x_ptr", "gate_ptr", "dy_ptr", "y_ptr", "dx_ptr", "dgate_ptr"), "*bf16")
    | dict.fromkeys(("w_ptr", "b_ptr", "mean_ptr", "r_ptr", "share_ptr", "eps_ptr"), "*fp32")
    | {"rows": "i32", "H": "i32", "N": "i32", "eps": "fp32"}
)
_CONSTANTS = {"WEIGHT": True, "BIAS": True, "GATE": True, "ROWS": 64, "BLOCK": 64}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = ((_forward, _ARGUMENTS, _CONSTANTS), (_backward, _ARGUMENTS, _CONSTANTS))
