"""wkv5_step in Triton: a program a row and head, its whole state in registers.

forward    y = r S + (sum r u k) v,  S' = exp(-exp(w)) S + k v^T,
           z = (weight (y - mean) / sqrt(var + eps) + bias) silu(gate)
shapes     r, k, v, gate, z (B, H, N) contiguous; w, u, weight, bias (H, N); S, S' (B, H, N, N) float32, key as row
precision  float32, the variance about the mean; z rounded once
limits     N <= 128; compute capability 8.0 or newer
cost       8 N^2 bytes a head: bound by memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tkpy.ops.wkv5_step.eager import backward as backward


@triton.jit
def _load(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["H"])
def _forward(
    r_ptr, k_ptr, v_ptr, w_ptr, u_ptr, weight_ptr, bias_ptr, gate_ptr, initial_ptr, z_ptr, state_ptr, H, N, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr, INITIAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    unit, n = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    at, of_head, mask = unit * N + n, (unit % H) * N + n, n < N
    place = at[:, None] * N + n[None, :]
    inside = mask[:, None] & mask[None, :]
    r, k, v = _load(r_ptr, at, mask), _load(k_ptr, at, mask), _load(v_ptr, at, mask)
    y = tl.sum(r * _load(u_ptr, of_head, mask) * k, 0) * v
    state = k[:, None] * v[None, :]
    if INITIAL:
        before = _load(initial_ptr, place, inside)
        y += tl.sum(r[:, None] * before, 0)
        state += tl.exp(-tl.exp(_load(w_ptr, of_head, mask)))[:, None] * before
    tl.store(state_ptr + place, state, mask=inside)
    centred = tl.where(mask, y - tl.sum(y, 0) / N, 0.0)
    z = centred / tl.sqrt(tl.sum(centred * centred, 0) / N + eps)
    if WEIGHT:
        z *= _load(weight_ptr, of_head, mask)
    if BIAS:
        z += _load(bias_ptr, of_head, mask)
    if GATE:
        gate = _load(gate_ptr, at, mask)
        z *= gate / (1.0 + tl.exp(-gate))
    tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=mask)


def forward(r, k, v, w, u, weight, bias, gate, initial_state, eps, dtype=None):
    """`dtype` of z, if not r's."""
    z = torch.empty(r.shape, dtype=dtype or r.dtype, device=r.device)
    batch, heads, size = r.shape
    state = torch.empty(*r.shape, size, dtype=torch.float32, device=r.device)
    if r.numel():
        given = {"WEIGHT": weight, "BIAS": bias, "GATE": gate, "INITIAL": initial_state}
        tensors = [r if t is None else t.contiguous() for t in (r, k, v, w, u, *given.values())]
        block = triton.next_power_of_2(size)
        # With fused products, lanes that hold copies of one sum differ in its last bit, and race to store it.
        _forward[(batch * heads,)](
            *tensors, z, state, heads, size, eps, **{name: t is not None for name, t in given.items()}, BLOCK=block,
            num_warps=8 if block > 64 else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return z, state


_ARGUMENTS = (
    dict.fromkeys(("r_ptr", "k_ptr", "v_ptr", "gate_ptr", "z_ptr"), "*bf16")
    | dict.fromkeys(("w_ptr", "u_ptr", "weight_ptr", "bias_ptr", "initial_ptr", "state_ptr"), "*fp32")
    | {"H": "i32", "N": "i32", "eps": "fp32"}
)
_CONSTANTS = {"WEIGHT": True, "BIAS": True, "GATE": True, "INITIAL": True, "BLOCK": 64}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = ((_forward, _ARGUMENTS, _CONSTANTS),)
