"""rotary in Triton.

forward    y[i] = x[i] c - x[i + D/2] s,  y[i + D/2] = x[i + D/2] c + x[i] s,  (c, s) of p / scaling * base^(-2i/D)
backward   the same with -s: one kernel serves both
tiles      a program takes ROWS positions and HEADS heads: its angles are formed once and used for every head
shapes     x (B, S, H, D) of any strides; positions (S,) or (B, S); y contiguous
precision  angles in float64, as turns, so that taking off the whole turns is exact: cosine and sine in float32 of an
           angle within half a turn, right for any int32 position; products in float32, y rounded once
limits     D even, D/2 below 2^16; compute capability 8.0 or newer
cost       2 elements moved and 3 flops an element; 20 float64 operations for a pair of channels, a position and HEADS
           heads: bound by memory
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl


@triton.jit
def _exp2(x):
    """2^x in float64, -1000 < x < 1000: the integer part by the exponent's bits, the rest by 13 terms of its series."""
    whole = tl.floor(x + 0.5)
    z = (x - whole) * 0.6931471805599453
    series = 1.0 + z / 13.0
    for i in tl.static_range(12):
        series = 1.0 + z * series / (12.0 - i)
    power = ((whole.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return series * power


@triton.jit
def _rotate(
    x_ptr, position_ptr, y_ptr, S, H,
    x_b, x_s, x_h, x_d, position_b, position_s,
    OCTAVES: tl.constexpr, SCALING: tl.constexpr,  # numbers at run time would come as float32
    HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, BLOCK)
    place = row.to(tl.int64)

    at = tl.load(position_ptr + batch * position_b + place * position_s, mask=row < S, other=0).to(tl.float64)
    turns_per_step = _exp2(OCTAVES * (pair.to(tl.float64) / HALF)) * 0.15915494309189535  # base^(-2i/D) / (2 pi)
    turns = (at / SCALING)[:, None] * turns_per_step[None, :]
    angle = ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)
    c = tl.cos(angle)
    s = tl.sin(angle)
    if BACK:
        s = -s

    for i in range(HEADS):
        head = (tl.program_id(1) * HEADS + i).to(tl.int64)
        pairs = tl.where(head < H, HALF, 0)
        inside = (row < S)[:, None] & (pair < pairs)[None, :]
        source = x_ptr + batch * x_b + place[:, None] * x_s + head * x_h + pair[None, :] * x_d
        left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(source + HALF * x_d, mask=inside, other=0.0).to(tl.float32)
        target = y_ptr + ((batch * S + place[:, None]) * H + head) * (2 * HALF) + pair[None, :]
        tl.store(target, (left * c - right * s).to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(target + HALF, (right * c + left * s).to(y_ptr.dtype.element_ty), mask=inside)


def _run(x: torch.Tensor, positions: torch.Tensor, base: float, scaling: float, back: bool) -> torch.Tensor:
    y = x.new_empty(x.shape)
    if not x.numel():
        return y
    four = x if x.dim() == 4 else x[None]
    batches, length, heads, width = four.shape
    half = width // 2
    block = triton.next_power_of_2(half)
    rows = max(1, min(triton.next_power_of_2(length), 2048 // block))
    step = positions.stride()[-1]
    stride = positions.stride()[0] if positions.dim() == 2 else 0
    grid = (triton.cdiv(length, rows), triton.cdiv(heads, 8), batches)
    _rotate[grid](
        four, positions, y, length, heads, *four.stride(), stride, step,
        OCTAVES=-math.log2(base), SCALING=scaling, HALF=half, BLOCK=block, ROWS=rows, HEADS=min(8, heads), BACK=back,
        num_warps=4,
    )  # fmt: skip
    return y


def forward(x, positions, base, scaling):
    return _run(x, positions, base, scaling, False)


def backward(grads, outputs, x, positions, base, scaling, *, needs):
    (dy,) = grads
    return [None if dy is None else _run(dy, positions, base, scaling, True), None]


_TYPES = {"x_ptr": "*bf16", "position_ptr": "*i64", "y_ptr": "*bf16", "S": "i32", "H": "i32"} | dict.fromkeys(
    ("x_b", "x_s", "x_h", "x_d", "position_b", "position_s"), "i64"
)

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = tuple(
    (
        _rotate,
        _TYPES,
        {
            "OCTAVES": -math.log2(500000.0),
            "SCALING": 16.0,
            "HALF": 64,
            "BLOCK": 64,
            "ROWS": 32,
            "HEADS": 8,
            "BACK": back,
        },
    )
    for back in (False, True)
)
