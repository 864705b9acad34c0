"""The Triton kernels of rms_norm and layer_norm; their triton.py state the mathematics.

A row of up to WHOLE columns stays in registers; a wider one goes chunk by chunk and is read again for what needs its
sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tkpy.ops import residual as stream

WHOLE = 16384  # widest row held in registers
CHUNK = 4096


@triton.jit
def _load(ptr, row, D, col, mask):
    return tl.load(ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(ptr, row, D, col, mask, value):
    tl.store(ptr + row * D + col, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _drop(v, seed_ptr, row, start, threshold, scale, BLOCK: tl.constexpr):
    """The dropout of tkpy/ops/residual.py."""
    quad = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    low = (quad * 0 + (row & 0xFFFFFFFF)).to(tl.uint32)
    high = (quad * 0 + (row >> 32)).to(tl.uint32)
    a, b, c, d = tl.philox(tl.load(seed_ptr), quad, low, high, quad * 0)
    words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    return tl.where(words.to(tl.uint32, bitcast=True).to(tl.int64) >= threshold, v * scale, 0.0)


@triton.jit
def _join(
    x_ptr, res_ptr, z_ptr, seed_ptr, row, D, start, threshold, scale,
    RESIDUAL: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    col = start + tl.arange(0, BLOCK)
    mask = col < D
    z = _load(x_ptr, row, D, col, mask)
    if DROP:
        z = _drop(z, seed_ptr, row, start, threshold, scale, BLOCK)
    if RESIDUAL:
        z += _load(res_ptr, row, D, col, mask)
    if DROP or RESIDUAL:
        z = z.to(z_ptr.dtype.element_ty)  # y is the norm of what is returned
        _store(z_ptr, row, D, col, mask, z)
        z = z.to(tl.float32)
    return z


@triton.jit
def _write(
    z, mean, r, w_ptr, b_ptr, y_ptr, row, D, start, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    col = start + tl.arange(0, BLOCK)
    mask = col < D
    y = (z - mean) * r
    if WEIGHT:
        y *= _load(w_ptr, 0, D, col, mask)
    if BIAS:
        y += _load(b_ptr, 0, D, col, mask)
    _store(y_ptr, row, D, col, mask, y)


@triton.jit
def _inverse(variance, eps, INSIDE: tl.constexpr):
    if INSIDE:
        return 1.0 / tl.sqrt(variance + eps)
    else:
        return 1.0 / (tl.sqrt(variance) + eps)


@triton.jit
def _moments(z, mean, squares, start, D, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    """Chan, Golub and LeVeque 1979, eq. 2.1: the moments of a union of two samples; about zero without LAYER."""
    if LAYER:
        mask = start + tl.arange(0, BLOCK) < D
        count = tl.minimum(BLOCK, D - start).to(tl.float32)
        here = tl.sum(z, axis=0) / count
        centred = tl.where(mask, z - here, 0.0)
        delta = here - mean
        share = count / (count + start)
        return mean + delta * share, squares + tl.sum(centred * centred, axis=0) + delta * delta * start * share
    else:
        return mean, squares + tl.sum(z * z, axis=0)


@triton.jit
def forward_kernel(
    x_ptr, res_ptr, w_ptr, b_ptr, seed_ptr, y_ptr, z_ptr, mean_ptr, r_ptr, D, eps, threshold, scale,
    LAYER: tl.constexpr, INSIDE: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    DROP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    mean = 0.0
    squares = 0.0
    if WIDE:
        for start in range(0, D, BLOCK):
            z = _join(x_ptr, res_ptr, z_ptr, seed_ptr, row, D, start, threshold, scale, RESIDUAL, DROP, BLOCK)
            mean, squares = _moments(z, mean, squares, start, D, LAYER, BLOCK)
    else:
        z = _join(x_ptr, res_ptr, z_ptr, seed_ptr, row, D, 0, threshold, scale, RESIDUAL, DROP, BLOCK)
        mean, squares = _moments(z, mean, squares, 0, D, LAYER, BLOCK)
    r = _inverse(squares / D, eps, INSIDE)
    if WIDE:
        for start in range(0, D, BLOCK):  # joined anew: what this program has written it need not wait for
            z = _join(x_ptr, res_ptr, z_ptr, seed_ptr, row, D, start, threshold, scale, RESIDUAL, DROP, BLOCK)
            _write(z, mean, r, w_ptr, b_ptr, y_ptr, row, D, start, WEIGHT, BIAS, BLOCK)
    else:
        _write(z, mean, r, w_ptr, b_ptr, y_ptr, row, D, 0, WEIGHT, BIAS, BLOCK)
    if LAYER:
        tl.store(mean_ptr + row, mean)
        tl.store(r_ptr + row, r)


@triton.jit
def _normal(z_ptr, row, D, start, mean, r, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    """z, which layer_norm has normalised."""
    col = start + tl.arange(0, BLOCK)
    n = _load(z_ptr, row, D, col, col < D)
    if LAYER:
        n = tl.where(col < D, (n - mean) * r, 0.0)
    return n


@triton.jit
def _sums(n, dy_ptr, w_ptr, row, D, start, LAYER: tl.constexpr, WEIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """(sum g, sum g n) of a chunk, or (sum z^2, sum g z)."""
    col = start + tl.arange(0, BLOCK)
    g = _load(dy_ptr, row, D, col, col < D)
    if WEIGHT:
        g *= _load(w_ptr, 0, D, col, col < D)
    if LAYER:
        return tl.sum(g, axis=0), tl.sum(g * n, axis=0)
    else:
        return tl.sum(n * n, axis=0), tl.sum(g * n, axis=0)


@triton.jit
def _coefficients(first, along, r, D, eps, LAYER: tl.constexpr, INSIDE: tl.constexpr):
    """(r, slope, shift): d = r g - slope n - shift."""
    if LAYER:
        return r, r * (along / D), r * (first / D)
    elif INSIDE:
        root = tl.sqrt(first / D + eps)
        return 1.0 / root, along / D / tl.maximum(root, 1e-30) / (root * root), 0.0
    else:
        root = tl.sqrt(first / D)
        return 1.0 / (root + eps), along / D / tl.maximum(root, 1e-30) / ((root + eps) * (root + eps)), 0.0


@triton.jit
def _write_gradients(
    n, r, slope, shift, dy_ptr, dz_ptr, w_ptr, seed_ptr, dx_ptr, dres_ptr, row, D, start, threshold, scale,
    WEIGHT: tl.constexpr, DZ: tl.constexpr, RESIDUAL: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    col = start + tl.arange(0, BLOCK)
    mask = col < D
    d = _load(dy_ptr, row, D, col, mask)
    if WEIGHT:
        d *= _load(w_ptr, 0, D, col, mask)
    d = r * d - slope * n - shift
    if DZ:
        d += _load(dz_ptr, row, D, col, mask)
    if RESIDUAL:
        _store(dres_ptr, row, D, col, mask, d)
    if DROP:
        d = _drop(d, seed_ptr, row, start, threshold, scale, BLOCK)
    _store(dx_ptr, row, D, col, mask, d)


@triton.jit
def backward_kernel(
    z_ptr, dy_ptr, dz_ptr, w_ptr, seed_ptr, mean_ptr, r_ptr, dx_ptr, dres_ptr, dw_ptr, db_ptr, M, D, eps, threshold,
    scale,
    ROWS: tl.constexpr, LAYER: tl.constexpr, INSIDE: tl.constexpr, WEIGHT: tl.constexpr, DZ: tl.constexpr,
    RESIDUAL: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    db = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(program * ROWS, tl.minimum(program * ROWS + ROWS, M)):
        mean = 0.0
        r = 0.0
        if LAYER:
            mean = tl.load(mean_ptr + row)
            r = tl.load(r_ptr + row)
        n = _normal(z_ptr, row, D, 0, mean, r, LAYER, BLOCK)
        first, along = _sums(n, dy_ptr, w_ptr, row, D, 0, LAYER, WEIGHT, BLOCK)
        r, slope, shift = _coefficients(first, along, r, D, eps, LAYER, INSIDE)
        _write_gradients(
            n, r, slope, shift, dy_ptr, dz_ptr, w_ptr, seed_ptr, dx_ptr, dres_ptr, row, D, 0, threshold, scale,
            WEIGHT, DZ, RESIDUAL, DROP, BLOCK,
        )  # fmt: skip
        dy = _load(dy_ptr, row, D, col, col < D)
        if LAYER:
            dw += dy * n
            db += dy
        else:
            dw += dy * n * r
    _store(dw_ptr, program, D, col, col < D, dw)
    if LAYER:
        _store(db_ptr, program, D, col, col < D, db)


@triton.jit
def backward_rows_kernel(
    z_ptr, dy_ptr, dz_ptr, w_ptr, seed_ptr, mean_ptr, r_ptr, dx_ptr, dres_ptr, D, eps, threshold, scale,
    LAYER: tl.constexpr, INSIDE: tl.constexpr, WEIGHT: tl.constexpr, DZ: tl.constexpr, RESIDUAL: tl.constexpr,
    DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    mean = 0.0
    r = 0.0
    first = 0.0
    along = 0.0
    if LAYER:
        mean = tl.load(mean_ptr + row)
        r = tl.load(r_ptr + row)
    for start in range(0, D, BLOCK):
        n = _normal(z_ptr, row, D, start, mean, r, LAYER, BLOCK)
        a, b = _sums(n, dy_ptr, w_ptr, row, D, start, LAYER, WEIGHT, BLOCK)
        first += a
        along += b
    scaled, slope, shift = _coefficients(first, along, r, D, eps, LAYER, INSIDE)
    for start in range(0, D, BLOCK):
        n = _normal(z_ptr, row, D, start, mean, r, LAYER, BLOCK)
        _write_gradients(
            n, scaled, slope, shift, dy_ptr, dz_ptr, w_ptr, seed_ptr, dx_ptr, dres_ptr, row, D, start, threshold, scale,
            WEIGHT, DZ, RESIDUAL, DROP, BLOCK,
        )  # fmt: skip
    if not LAYER:
        tl.store(r_ptr + row, scaled)


@triton.jit
def backward_columns_kernel(
    z_ptr, dy_ptr, mean_ptr, r_ptr, dw_ptr, db_ptr, M, D, ROWS: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(1).to(tl.int64)
    col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = col < D
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    db = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(program * ROWS, tl.minimum(program * ROWS + ROWS, M)):
        n = _load(z_ptr, row, D, col, mask)
        dy = _load(dy_ptr, row, D, col, mask)
        if LAYER:
            n -= tl.load(mean_ptr + row)
            db += dy
        dw += dy * n * tl.load(r_ptr + row)
    _store(dw_ptr, program, D, col, mask, dw)
    if LAYER:
        _store(db_ptr, program, D, col, mask, db)


def _launch_shape(width: int) -> tuple[int, int]:
    block = max(4, triton.next_power_of_2(width))
    return block, min(16, max(1, block // 512))  # about 16 elements a thread


def _or(x: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """A pointer must point somewhere: an absent tensor is never read."""
    return other if x is None else x.contiguous()


def _dropping(dropout: float) -> tuple[int, float, bool]:
    return stream.threshold_of(dropout), 1 / (1 - dropout), dropout > 0.0


def forward(layer, x, weight, bias, residual, seed, eps, inside, dropout):
    """(y, z, mean, r); z is empty where it is x, mean and r are meaningful for layer_norm."""
    x = x.contiguous()
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    y, z = torch.empty_like(x), stream.fake_stream(x, residual, dropout)
    mean, r = (x.new_zeros(*x.shape[:-1], 1, dtype=torch.float32) for _ in range(2))
    if x.numel():
        wide = width > WHOLE
        block, warps = (CHUNK, 8) if wide else _launch_shape(width)
        threshold, scale, drop = _dropping(dropout)
        forward_kernel[(rows,)](
            x, _or(residual, x), _or(weight, x), _or(bias, x), _or(seed, x), y, z if z.numel() else x, mean, r, width,
            eps, threshold, scale, LAYER=layer, INSIDE=inside, WEIGHT=weight is not None, BIAS=bias is not None,
            RESIDUAL=residual is not None, DROP=drop, WIDE=wide, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return y, z, mean, r


def backward(layer, grads, z, x, weight, residual, seed, statistics, eps, inside, dropout, needs):
    """(dx, dweight, dbias, dresidual); z as the forward returned it."""
    dy, dz = grads[0], stream.incoming(grads[1], residual, dropout)
    if (dy is None and dz is None) or not x.numel():
        return None, None, None, None
    dy = torch.zeros_like(x, memory_format=torch.contiguous_format) if dy is None else dy.contiguous()
    z = (z if stream.joins(residual, dropout) else x).contiguous()
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    mean, r = statistics or (z.new_empty(rows, dtype=torch.float32) for _ in range(2))
    whole = width <= WHOLE
    per_program = max(1, triton.cdiv(rows, 512 if whole else 64))
    programs = triton.cdiv(rows, per_program)
    dx = torch.empty_like(dy)
    dresidual = None if residual is None else torch.empty_like(z)
    dw, db = (torch.empty(programs, width, dtype=torch.float32, device=x.device) for _ in range(2))
    threshold, scale, drop = _dropping(dropout)
    options = {"LAYER": layer, "INSIDE": inside, "WEIGHT": weight is not None, "DZ": dz is not None,
               "RESIDUAL": residual is not None, "DROP": drop}  # fmt: skip
    tensors = (z, dy, _or(dz, z), _or(weight, z), _or(seed, z), mean, r, dx, _or(dresidual, dx))
    if whole:
        block, warps = _launch_shape(width)
        backward_kernel[(programs,)](
            *tensors,
            dw,
            db,
            rows,
            width,
            eps,
            threshold,
            scale,
            ROWS=per_program,
            BLOCK=block,
            num_warps=warps,
            **options,
        )
    else:
        backward_rows_kernel[(rows,)](*tensors, width, eps, threshold, scale, BLOCK=CHUNK, num_warps=8, **options)
        if any(needs):
            backward_columns_kernel[triton.cdiv(width, 1024), programs](
                z, dy, mean, r, dw, db, rows, width, ROWS=per_program, LAYER=layer, BLOCK=1024, num_warps=4
            )
    return dx, dw.sum(0) if needs[0] else None, db.sum(0) if needs[1] else None, dresidual


def _types(kernel: Any, constants: dict) -> dict[str, str]:
    wide, names = ("mean_ptr", "r_ptr", "dw_ptr", "db_ptr"), {"seed_ptr": "*i64", "threshold": "i64"}
    names |= dict.fromkeys(wide, "*fp32") | dict.fromkeys(("eps", "scale"), "fp32") | dict.fromkeys(("D", "M"), "i32")
    return {n: names.get(n, "*bf16") for n in kernel.arg_names if n not in constants}


def ahead_of_time(layer: bool) -> tuple:
    """What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants)."""
    flags = {"LAYER": layer, "INSIDE": True, "WEIGHT": True, "RESIDUAL": True, "DROP": True}
    chosen = (
        (forward_kernel, flags | {"BIAS": layer, "WIDE": False, "BLOCK": 4096}),
        (forward_kernel, flags | {"INSIDE": layer, "BIAS": False, "DROP": False, "WIDE": True, "BLOCK": CHUNK}),
        (backward_kernel, flags | {"DZ": True, "ROWS": 32, "BLOCK": 4096}),
        (backward_rows_kernel, flags | {"DZ": False, "DROP": False, "BLOCK": CHUNK}),
        (backward_columns_kernel, {"LAYER": layer, "ROWS": 32, "BLOCK": 1024}),
    )
    return tuple((kernel, _types(kernel, constants), constants) for kernel, constants in chosen)
