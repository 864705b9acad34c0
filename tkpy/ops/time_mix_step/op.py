"""time_mix_step: one token of RWKV-5's time mix, all of it before the output projection: token shift, the projections,
recurrence, group norm and gate (Peng et al. 2024, "Eagle and Finch", arXiv:2404.05892, Eagle time mixing)."""

from __future__ import annotations

from typing import Any

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.registry import Call, Case, Maker, Op, Refusal

MAX_BATCH = 16  # rows that the fused kernels take: with more, GEMMs read the weights once as well
MAX_SIZE = 128  # channels of a head, likewise


def time_mix_step(
    x: torch.Tensor,
    last: torch.Tensor | None,
    mix: torch.Tensor,
    receptance: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gate: torch.Tensor | None,
    w: torch.Tensor,
    u: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `tkpy.token_shift`, the projections and `tkpy.wkv5_step` make of a single token, at once:

        x_m = mix[m] x + (1 - mix[m]) last                    m = r, k, v, g
        r, k, v, g = receptance x_r, key x_k, value x_v, gate x_g     by heads
        y[j]   = sum_i r[i] * (S[i,j] + u[i] k[i] v[j])
        S'[i,j] = exp(-exp(w[i])) * S[i,j] + k[i] v[j]
        z      = (weight * (y - mean(y)) / sqrt(var(y) + eps) + bias) * silu(g)

    Decoding is bound by the weights of the projections and by the states, which are read once.

    Args:
        x: (B, C), float32, bfloat16 or float16 (or float64): the token, already normalised.
        last: (B, C) of x's dtype, the token before it; None is zero.
        mix: (4, C), or (3, C) where `gate` is None; any floating dtype: the mixes of r, k, v and the gate.
        receptance, key, value: (H N, C) of x's dtype, any strides: the projections' weights, as torch.nn.Linear's.
        gate: likewise, or None: no gate.
        w, u: (H, N), the raw decay and the bonus; float32 or x's dtype.
        weight, bias: (H, N), any floating dtype, or None for ones and zeros: of the norm.
        initial_state: (B, H, N, N) float32, the key channel as row; None is zero. It is not written to.
        eps: of the norm, non-negative.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        z: (B, H, N) in x's dtype; the new state: (B, H, N, N), float32 (float64 for float64 inputs). All tensors have
        gradients.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    x, last, receptance, key, value, gate = autocast(x, last, receptance, key, value, gate)
    check = Arguments("time_mix_step")
    check.tensor("x", x, "B C")
    check.tensor("last", last, "B C", optional=True)
    check.sizes["M"] = 3 if gate is None else 4
    check.tensor("mix", mix, "M C")
    wide = (torch.float32, torch.float64)
    check.tensor("w", w, "H N", dtypes=(*wide, x.dtype))
    check.tensor("u", u, "H N", dtypes=(*wide, x.dtype))
    check.sizes["HN"] = w.numel()
    for name, projection in (("receptance", receptance), ("key", key), ("value", value)):
        check.tensor(name, projection, "HN C")
    check.tensor("gate", gate, "HN C", optional=True)
    check.same_dtype("x", "last", "receptance", "key", "value", "gate")
    check.tensor("weight", weight, "H N", optional=True)
    check.tensor("bias", bias, "H N", optional=True)
    check.tensor("initial_state", initial_state, "B H N N", dtypes=wide, optional=True)
    check.same_device()
    check.number("eps", eps, minimum=0.0)
    z, state = OP(
        x, last, mix, receptance, key, value, gate, w, u, weight, bias, initial_state, float(eps), backend=backend
    )  # fmt: skip
    return z, state


def fake(x, last, mix, receptance, key, value, gate, w, u, weight, bias, initial_state, eps):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (x.shape[0], *w.shape)
    return x.new_empty(shape), x.new_empty(*shape, w.shape[1], dtype=wide)


def supports(backend: str, call: Call) -> list[Refusal]:
    reasons, batch, size = list[Refusal](), call["x"].shape[0], call["w"].shape[1]
    if backend not in ("cuda", "emulator", "triton"):
        return reasons
    if backend != "triton" and call["x"].dtype not in (torch.bfloat16, torch.float16):
        got = str(call["x"].dtype).removeprefix("torch.")
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {got}"))
    if size > MAX_SIZE:
        reasons.append(Refusal("head_size", f"needs heads of at most {MAX_SIZE} channels, got {size}"))
    if batch > MAX_BATCH:
        reasons.append(Refusal("size", f"needs at most {MAX_BATCH} rows, got {batch}"))
    return reasons


def flops(call: Call) -> int:
    """The projections, and read and write of an N x N state per head."""
    batch, channels = call["x"].shape
    projections = 2 * call["mix"].shape[0] * batch * channels * call["w"].numel()
    return projections + 6 * batch * call["w"].numel() * call["w"].shape[1]


def nbytes(call: Call) -> int:
    """Every tensor once, z and the new state."""
    x, heads = call["x"], call["w"].numel()
    outputs = x.shape[0] * heads * (x.element_size() + 4 * call["w"].shape[1])
    return sum(t.numel() * t.element_size() for t in call.tensors) + outputs


EVERY = ("last", "gate", "weight", "bias", "state")


def _case(batch: int, channels: int, heads: int, size: int, *options: str, eps: float = 64e-5):
    def make(m: Maker):
        width, mixes = heads * size, 4 if "gate" in options else 3
        kwargs: dict[str, Any] = {"x": m.randn(batch, channels), "mix": m.uniform(-0.1, 1.1, mixes, channels)}
        kwargs["last"] = m.randn(batch, channels) if "last" in options else None
        for name in ("receptance", "key", "value", "gate"):
            kwargs[name] = m.randn(width, channels, scale=0.7 / max(channels, 1) ** 0.5)
        if "gate" not in options:
            kwargs["gate"] = None
        kwargs |= {"w": m.uniform(-6.0, 1.0, heads, size, dtype=m.wide), "u": m.randn(heads, size, dtype=m.wide)}
        kwargs |= {name: m.randn(heads, size) for name in ("weight", "bias") if name in options}
        if "state" in options:
            kwargs["initial_state"] = m.randn(batch, heads, size, size, dtype=m.wide)
        return kwargs | {"eps": eps}

    return make


def _strided(m: Maker):
    kwargs = _case(3, 24, 4, 6, *EVERY)(m)
    for name in ("receptance", "gate"):
        kwargs[name] = m.randn(24, 24, scale=0.14).T
    kwargs["key"] = m.randn(24, 60, scale=0.14)[:, 1:49:2]
    kwargs |= {"x": m.randn(24, 3).T, "last": m.randn(3, 50)[:, 1:25], "mix": m.uniform(0.0, 1.0, 1, 24).expand(4, 24)}
    kwargs |= {"w": m.uniform(-6.0, 1.0, 6, 4, dtype=m.wide).T, "u": m.randn(8, 6, dtype=m.wide)[::2]}
    return kwargs | {"initial_state": m.randn(1, 4, 6, 6, dtype=m.wide).mT.expand(3, 4, 6, 6)}


def _float32_parameters(m: Maker):
    kwargs = _case(2, 32, 2, 24, *EVERY)(m)
    return kwargs | {
        "mix": m.uniform(0.0, 1.0, 4, 32, dtype=m.wide),
        "weight": m.randn(2, 24, dtype=m.wide),
        "bias": m.randn(2, 24, dtype=m.wide),
    }


def _extreme(m: Maker):
    kwargs = _case(2, 32, 2, 16, *EVERY)(m)
    kwargs["w"] = m.uniform(-20.0, 100.0, 2, 16, dtype=m.wide)
    kwargs["w"][0, :4] = -1e4
    return kwargs


CASES = (
    Case("small", _case(2, 128, 2, 64, *EVERY), "the released head size with every option"),
    Case("the first token", _case(1, 96, 2, 32, "gate", "weight", "bias", eps=0.5), "no token before it, no state"),
    Case("no gate", _case(2, 64, 2, 32, "last", "weight", "bias", "state"), "RWKV 5.0: three mixes"),
    Case("no norm's parameters", _case(1, 64, 1, 32, "last", "gate", "state"), "weight and bias absent"),
    Case("head size 128", _case(1, 256, 2, 128, *EVERY), "the widest heads"),
    Case("head size 48", _case(3, 80, 3, 48, *EVERY), "padded heads, a batch of three"),
    Case("head size 37", _case(1, 64, 2, 37, *EVERY), "rows that are no multiple of anything"),
    Case("head size 1", _case(2, 16, 3, 1, *EVERY, eps=0.5), "y is its own mean"),
    Case("a prime width", _case(2, 67, 2, 16, *EVERY), "rows of weights that begin anywhere"),
    Case("one channel", _case(2, 1, 1, 16, *EVERY), "C = 1"),
    Case("another attention width", _case(2, 320, 2, 32, *EVERY), "C is not H N"),
    Case("eight rows", _case(8, 64, 2, 32, *EVERY), "as many as a tile of the tensor cores"),
    Case("nine rows", _case(9, 64, 2, 32, *EVERY), "one more"),
    Case("sixteen rows", _case(16, 64, 1, 32, *EVERY), "the most of the kernels"),
    Case("no rows", _case(0, 16, 2, 8, *EVERY), "zero-size batch"),
    Case("no heads", _case(2, 16, 0, 8, *EVERY), "zero-size heads"),
    Case("no head channels", _case(2, 16, 2, 0, *EVERY), "heads of size 0"),
    Case("no input channels", _case(2, 0, 2, 8, *EVERY, eps=0.5), "products over nothing"),
    Case("non-contiguous", _strided, "every tensor strided, expanded mixes and state"),
    Case("float32 parameters", _float32_parameters, "mixed dtypes"),
    Case("extreme decays", _extreme, "decays that are exactly 0, exactly 1 and all between"),
    Case("1.5B decoding", _case(1, 2048, 32, 64, *EVERY), "RWKV-5 1.5B, one sequence", bench=True),
)

OP = Op(
    "time_mix_step",
    time_mix_step,
    "(Tensor x, Tensor? last, Tensor mix, Tensor receptance, Tensor key, Tensor value, Tensor? gate, Tensor w, "
    "Tensor u, Tensor? weight, Tensor? bias, Tensor? initial_state, float eps) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
)
