"""group_norm: each head's outputs normalised, scaled, shifted and gated.

Wu and He 2018, "Group Normalization", eq. 1, over the last dimension; with the SiLU gate of RWKV-5 (Peng et al. 2024,
arXiv:2404.05892, "Eagle", eq. 8).
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments
from tkpy.errors import Refusal
from tkpy.ops import residual
from tkpy.registry import Call, Case, Op

WIDEST = 4096  # channels of a head in the compiled kernels


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    gate: torch.Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> torch.Tensor:
    """Normalisation over the channels of each head, statistics in float32 (float64 for float64 inputs):

        y = (weight * (x - mean(x)) / sqrt(var(x) + eps) + bias) * silu(gate)

    `torch.nn.functional.group_norm` of (rows, H * N) channels in H groups is this op on (rows, H, N).

    Args:
        x: (..., H, N), float32, bfloat16, float16 or float64, any strides.
        weight, bias: (H, N), any of these dtypes, or None for ones and zeros.
        gate: x's shape and dtype, before its SiLU; None: no gate.
        eps: non-negative.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (..., H, N) in x's dtype, contiguous. Gradients for all four tensors.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("group_norm")
    check.tensor("x", x, "... H N")
    check.tensor("weight", weight, "H N", optional=True)
    check.tensor("bias", bias, "H N", optional=True)
    check.tensor("gate", gate, "... H N", optional=True)
    check.same_dtype("x", "gate")
    check.same_device()
    check.number("eps", eps, minimum=0.0)
    if gate is not None and gate.shape != x.shape:
        check.fail("gate", f"of x's shape {tuple(x.shape)}", f"{tuple(gate.shape)}")
    y, _, _ = OP(x, weight, bias, gate, eps, backend=backend)
    return y


def fake(x, weight, bias, gate, eps):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    row = (*x.shape[:-1], 1)
    return x.new_empty(x.shape), x.new_empty(row, dtype=wide), x.new_empty(row, dtype=wide)


def flops(call: Call) -> int:
    return 13 * call["x"].numel()


def nbytes(call: Call) -> int:
    x = call["x"]
    return x.numel() * x.element_size() + sum(t.numel() * t.element_size() for t in call.tensors)


def supports(backend: str, call: Call) -> list[Refusal]:
    """What the compiled kernels cannot take."""
    reasons = residual.supports(backend, call)
    if backend in ("cuda", "emulator") and call["x"].shape[-1] > WIDEST:
        reasons.append(Refusal("size", f"needs heads of at most {WIDEST} channels, got {call['x'].shape[-1]}"))
    return reasons


def _case(*shape, options=("weight", "bias", "gate"), scale=1.0, shift=0.0, eps=1e-5):
    def make(m):
        kwargs = {"x": m.randn(*shape, scale=scale) + shift, "eps": eps}
        kwargs |= {name: m.randn(*shape[-2:]) for name in ("weight", "bias") if name in options}
        return kwargs | ({"gate": m.randn(*shape)} if "gate" in options else {})

    return make


CASES = (
    Case("small", _case(2, 5, 3, 64), "the plain call with every option"),
    Case("no gate", _case(7, 4, 32, options=("weight", "bias")), "torch's own group norm"),
    Case("bare", _case(7, 4, 32, options=()), "no parameters"),
    Case("no bias", _case(7, 4, 32, options=("weight", "gate")), "one parameter absent"),
    Case("no weight", _case(7, 4, 32, options=("bias", "gate")), "the other one absent"),
    Case("prime sizes", _case(3, 11, 7, 37), "nothing divides a tile"),
    Case("one head", _case(9, 1, 130), "a layer norm with a gate"),
    Case("two rows", _case(2, 8), "no leading dimension"),
    Case("many rows", _case(2, 150, 2, 16), "several tiles of rows: the parameters' gradients are added up"),
    Case("no rows", _case(0, 3, 8), "zero-size"),
    Case("no channels", _case(2, 3, 0), "N = 0"),
    Case(
        "non-contiguous",
        lambda m: {
            "x": m.randn(24, 5, 6).permute(1, 2, 0),
            "weight": m.randn(24, 6).t(),
            "bias": m.randn(6, 48)[:, ::2],
            "gate": m.randn(6, 1, 24).expand(6, 5, 24).transpose(0, 1),
        },
        "every tensor strided, an expanded gate",
    ),
    Case(
        "float32 parameters",
        lambda m: {
            "x": m.randn(5, 2, 40),
            "weight": m.randn(2, 40, dtype=m.wide),
            "bias": m.randn(2, 40, dtype=m.wide),
        },
        "mixed dtypes",
    ),
    Case(
        "float16 parameters",
        lambda m: {
            "x": m.randn(5, 2, 40),
            "weight": m.randn(40, 2, dtype=torch.float16).t(),
            "bias": m.randn(40, 2, dtype=torch.float16).t(),
        },
        "parameters narrower than x, strided (their gradients are rounded, so not compared)",
        grad=False,
    ),
    Case("tiny values", _case(5, 2, 40, scale=1e-3, eps=64e-5), "RWKV-5's eps dominates"),
    Case("offset", _case(5, 2, 64, shift=30.0), "a mean of 30 deviations: mean(x^2) - mean(x)^2 would cancel"),
    Case("32k x 64 x 64", _case(8, 4096, 64, 64, eps=64e-5), "RWKV-5 7B", bench=True),
)

#: The torch op also returns the statistics, mean and 1 / sqrt(var + eps), which its backward reads.
OP = Op(
    "group_norm",
    group_norm,
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? gate, float eps) -> (Tensor, Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    saves=(1, 2),
    supports=supports,
    kernel="rows_head_norm_forward",
)
