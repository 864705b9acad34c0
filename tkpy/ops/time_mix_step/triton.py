"""time_mix_step in Triton: two kernels, the projections of a mixed token, and wkv5_step's of what they made.

_project   one program a block of rows of one of the weights: mixes x and last for each stretch of C as it goes, so a
           mixed token is never in memory. A sum over C is one program's, in the order of C: the same bits each time
           one row: products summed in place, a column of DEPTH a sum; more: a product of matrices, padded to 16 rows
           while a stretch is multiplied, the next two (16 KB of weights) are on their way
_forward   of tkpy/ops/wkv5_step/triton.py: recurrence, norm and gate; a program a row and head
shapes     x, last (B, C), mix (M, C), weights (H N, C) contiguous (others are copied); made (M, B, H N) float32
precision  float32 throughout; for a product of matrices the mixed token in the weights' dtype (float32: ieee, no tf32);
           r, k, v and the gate's argument are not rounded, z once
limits     B <= 16, N <= 128; compute capability 8.0 or newer; gradients are eager.py's
cost       M H N C weights and the states once: bound by memory; x, last and a mix once a program, from the L2
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.time_mix_step.eager import backward as backward
from tkpy.ops.wkv5_step import triton as step


@triton.jit
def _mixed(x_ptr, last_ptr, mix_ptr, b, c, B, C, LAST: tl.constexpr):
    """mix x + (1 - mix) last of rows b (R, 1) and channels c (1, D), float32; zeros outside."""
    inside = (b < B) & (c < C)
    mix = tl.load(mix_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + b * C + c, mask=inside, other=0.0).to(tl.float32)
    if LAST:
        before = tl.load(last_ptr + b * C + c, mask=inside, other=0.0).to(tl.float32)
        return before + mix * (x - before)
    return mix * x


@triton.jit(do_not_specialize=["B"])
def _project(
    x_ptr, last_ptr, mix_ptr, receptance_ptr, key_ptr, value_ptr, gate_ptr, made_ptr, B, C, WIDTH,
    LAST: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    b = tl.arange(0, BATCH)
    weight_ptr = receptance_ptr
    if m == 1:
        weight_ptr = key_ptr
    if m == 2:
        weight_ptr = value_ptr
    if m == 3:
        weight_ptr = gate_ptr
    made = tl.zeros([ROWS, DEPTH if BATCH == 1 else BATCH], tl.float32)
    for start in tl.range(0, C, DEPTH, num_stages=STAGES):
        c = start + tl.arange(0, DEPTH)[None, :]
        weight = tl.load(weight_ptr + row * C + c, mask=(row < WIDTH) & (c < C), other=0.0)
        mixed = _mixed(x_ptr, last_ptr, mix_ptr + m * C, b[:, None], c, B, C, LAST)
        if BATCH == 1:
            made += weight.to(tl.float32) * mixed
        else:
            made = tl.dot(weight, tl.trans(mixed).to(weight.dtype), made, input_precision="ieee")
    if BATCH == 1:
        made = tl.sum(made, 1, keep_dims=True)
    at = made_ptr + (m * B + b[None, :]) * WIDTH + row
    tl.store(at, made, mask=(b[None, :] < B) & (row < WIDTH))


def _tile(batch: int, dtype: torch.dtype) -> dict[str, int]:
    """Weights of 8 KB: 512 bytes of 16 rows, or for several tokens, which more rows then share, 256 bytes of 32."""
    rows = 16 if batch == 1 else 32
    return {"BATCH": 1 if batch == 1 else 16, "ROWS": rows, "DEPTH": 8192 // dtype.itemsize // rows, "STAGES": 3}


def _projected(x, last, mix, weights, heads):
    """r, k, v and, of a fourth weight, the gate's argument: (M, B, H, N) float32."""
    made = torch.empty(len(weights), x.shape[0], *heads, dtype=torch.float32, device=x.device)
    if made.numel():
        tile, width = _tile(x.shape[0], x.dtype), heads.numel()
        tokens = [t.contiguous() for t in (x, x if last is None else last, mix)]
        rows = [t.contiguous() for t in [*weights, weights[0]][:4]]
        _project[(triton.cdiv(width, tile["ROWS"]), len(weights))](
            *tokens, *rows, made, *x.shape, width, LAST=last is not None, **tile, num_warps=4
        )
    return made


def forward(x, last, mix, receptance, key, value, gate, w, u, weight, bias, initial_state, eps):
    weights = [t for t in (receptance, key, value, gate) if t is not None]
    r, k, v, g = [*_projected(x, last, mix, weights, w.shape), None][:4]
    return step.forward(r, k, v, w, u, weight, bias, g, initial_state, eps, dtype=x.dtype)


def _arguments(dtype: str) -> dict[str, str]:
    pointers = ("x_ptr", "last_ptr", "mix_ptr", "receptance_ptr", "key_ptr", "value_ptr", "gate_ptr")
    return dict.fromkeys(pointers, dtype) | {"made_ptr": "*fp32"} | dict.fromkeys(("B", "C", "WIDTH"), "i32")


#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_project, _arguments("*bf16"), {"LAST": True, **_tile(1, torch.bfloat16)}),
    (_project, _arguments("*fp16"), {"LAST": True, **_tile(16, torch.float16)}),
    (_project, _arguments("*fp32"), {"LAST": False, **_tile(16, torch.float32)}),
)
