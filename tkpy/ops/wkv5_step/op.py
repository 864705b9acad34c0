"""wkv5_step: one token of RWKV-5's time mix after its projections: recurrence, group norm and gate (Peng et al. 2024,
"Eagle and Finch", arXiv:2404.05892, Eagle time mixing)."""

from __future__ import annotations

from typing import Any

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.registry import Call, Case, Maker, Op, Refusal

MAX_SIZE = 128  # of the heads that the kernels take
MAX_UNITS = 2**31 - 1  # rows times heads


def wkv5_step(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `tkpy.wkv5` and then `tkpy.group_norm` make of a single token, at once and without rounding between them:

        y[j]   = sum_i r[i] * (S[i,j] + u[i] k[i] v[j])
        S'[i,j] = exp(-exp(w[i])) * S[i,j] + k[i] v[j]
        z      = (weight * (y - mean(y)) / sqrt(var(y) + eps) + bias) * silu(gate)

    per row and head, with key channel i and value channel j. Decoding is bound by the states, which are read and
    written once.

    Args:
        r, k, v: (B, H, N) of one dtype, float32, bfloat16 or float16.
        w: (H, N), the raw decay; float32 or r's dtype.
        u: (H, N), the bonus; float32 or r's dtype.
        weight, bias: (H, N), any floating dtype, or None for ones and zeros.
        gate: (B, H, N) of r's dtype, before its SiLU; None: no gate.
        initial_state: (B, H, N, N) float32, the key channel as row; None is zero. It is not written to.
        eps: of the norm, non-negative.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        z: (B, H, N) in r's dtype; the new state: (B, H, N, N), float32 (float64 for float64 inputs). All tensors have
        gradients.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    r, k, v, gate = autocast(r, k, v, gate)
    check = Arguments("wkv5_step")
    for name, value in (("r", r), ("k", k), ("v", v)):
        check.tensor(name, value, "B H N")
    check.tensor("gate", gate, "B H N", optional=True)
    check.same_dtype("r", "k", "v", "gate")
    wide = (torch.float32, torch.float64)
    check.tensor("w", w, "H N", dtypes=(*wide, r.dtype))
    check.tensor("u", u, "H N", dtypes=(*wide, r.dtype))
    check.tensor("weight", weight, "H N", optional=True)
    check.tensor("bias", bias, "H N", optional=True)
    check.tensor("initial_state", initial_state, "B H N N", dtypes=wide, optional=True)
    check.same_device()
    check.number("eps", eps, minimum=0.0)
    z, state = OP(r, k, v, w, u, weight, bias, gate, initial_state, float(eps), backend=backend)
    return z, state


def fake(r, k, v, w, u, weight, bias, gate, initial_state, eps):
    wide = torch.float64 if r.dtype == torch.float64 else torch.float32
    return r.new_empty(r.shape), r.new_empty(*r.shape, r.shape[2], dtype=wide)


def supports(backend: str, call: Call) -> list[Refusal]:
    reasons, (batch, heads, size) = list[Refusal](), call["r"].shape
    if backend not in ("cuda", "emulator", "triton"):
        return reasons
    if backend == "emulator" and any(t.dtype == torch.float64 for t in call.tensors):
        reasons.append(Refusal("dtype", "needs float32, float16 or bfloat16, got float64"))
    if size > MAX_SIZE:
        reasons.append(Refusal("head_size", f"needs heads of at most {MAX_SIZE} channels, got {size}"))
    if batch * heads > MAX_UNITS:
        reasons.append(Refusal("size", f"needs fewer than 2^31 rows of heads, got {batch} rows of {heads}"))
    return reasons


def flops(call: Call) -> int:
    """Read and write of an N x N state per head; the norm is little beside it."""
    return 6 * call["r"].numel() * call["r"].shape[-1]


def nbytes(call: Call) -> int:
    """Every tensor once, z and the new state."""
    r = call["r"]
    return sum(t.numel() * t.element_size() for t in (*call.tensors, r)) + 4 * r.numel() * r.shape[-1]


EVERY = ("weight", "bias", "gate", "state")


def _case(batch: int, heads: int, size: int, *options: str, eps: float = 64e-5, scale: float = 0.7):
    def make(m: Maker):
        kwargs: dict[str, Any] = {name: m.randn(batch, heads, size, scale=scale) for name in "rkv"}
        kwargs |= {"w": m.uniform(-6.0, 1.0, heads, size, dtype=m.wide), "u": m.randn(heads, size, dtype=m.wide)}
        kwargs |= {name: m.randn(heads, size) for name in ("weight", "bias") if name in options}
        if "gate" in options:
            kwargs["gate"] = m.randn(batch, heads, size)
        if "state" in options:
            kwargs["initial_state"] = m.randn(batch, heads, size, size, dtype=m.wide)
        return kwargs | {"eps": eps}

    return make


def _strided(m: Maker):
    kwargs: dict[str, Any] = {name: m.randn(5, 16, 2 * 3).permute(2, 0, 1)[::2, :, ::2] for name in "rkv"}
    kwargs |= {"gate": m.randn(1, 5, 8).expand(3, 5, 8), "w": m.uniform(-6.0, 1.0, 8, 5, dtype=m.wide).T}
    kwargs |= {"u": m.randn(10, 8)[::2], "weight": m.randn(8, 5).T, "bias": m.randn(5, 16)[:, ::2]}
    return kwargs | {"initial_state": m.randn(1, 5, 8, 8, dtype=m.wide).mT.expand(3, 5, 8, 8)}


def _extreme(m: Maker):
    kwargs = _case(2, 2, 16, *EVERY)(m)
    kwargs["w"] = m.uniform(-20.0, 100.0, 2, 16, dtype=m.wide)
    kwargs["w"][0, :4] = -1e4
    return kwargs


def _float32_parameters(m: Maker):
    kwargs = _case(2, 3, 24, *EVERY)(m)
    return kwargs | {name: m.randn(3, 24, dtype=m.wide) for name in ("weight", "bias")}


CASES = (
    Case("small", _case(2, 3, 64, *EVERY), "the released head size with every option"),
    Case("from nothing", _case(2, 2, 64, "weight", "bias", "gate", eps=0.5), "the first token: no state"),
    Case("bare", _case(2, 3, 32, "state"), "no parameters of the norm and no gate: RWKV 5.0"),
    Case("no bias", _case(1, 2, 32, "weight", "state"), "one parameter absent"),
    Case("no weight", _case(1, 2, 32, "bias", "gate", "state"), "the other one absent"),
    Case("head size 128", _case(1, 2, 128, *EVERY), "the widest kernel"),
    Case("head size 104", _case(2, 1, 104, *EVERY), "padding in the widest kernel"),
    Case("head size 48", _case(1, 3, 48, *EVERY), "padding"),
    Case("head size 37", _case(2, 2, 37, *EVERY), "rows that begin anywhere"),
    Case("head size 7", _case(3, 2, 7, *EVERY), "less than a warp"),
    Case("head size 1", _case(2, 3, 1, *EVERY, eps=0.5), "y is its own mean"),
    Case("many rows", _case(9, 5, 8, *EVERY), "a batch"),
    Case("no rows", _case(0, 3, 8, *EVERY), "zero-size batch"),
    Case("no heads", _case(2, 0, 8, *EVERY), "zero-size heads"),
    Case("no channels", _case(2, 3, 0, *EVERY), "heads of size 0"),
    Case("non-contiguous", _strided, "every tensor strided, an expanded state"),
    Case("float32 parameters", _float32_parameters, "mixed dtypes"),
    Case("extreme decays", _extreme, "decays that are exactly 0, exactly 1 and all between"),
    Case("tiny values", _case(2, 2, 16, "weight", "bias", "gate", scale=1e-2), "eps dominates"),
    Case("1.5B decoding", _case(1, 32, 64, *EVERY), "RWKV-5 1.5B, one sequence", bench=True),
)

OP = Op(
    "wkv5_step",
    wkv5_step,
    "(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? weight, Tensor? bias, Tensor? gate, "
    "Tensor? initial_state, float eps) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
)
