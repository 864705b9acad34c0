"""rms_norm: y = weight * x / rms(x) over the last dimension.

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", arXiv 1910.07467, eq. 4.
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments
from tkpy.registry import Call, Case, Op, Refusal

MAX_TRITON_WIDTH = 65536  # one row is held by one program


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    eps_inside_sqrt: bool = True,
    backend: str | None = None,
) -> torch.Tensor:
    """Root-mean-square normalisation over the last dimension, statistics in float32.

    y = weight * x / sqrt(mean(x^2) + eps), or weight * x / (sqrt(mean(x^2)) + eps) with `eps_inside_sqrt=False`
    (as StripedHyena and Evo have it).

    Args:
        x: (..., D), float32, bfloat16 or float16.
        weight: (D,), any of these dtypes.
        eps: non-negative.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (..., D) in x's dtype, contiguous.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("rms_norm")
    check.tensor("x", x, "... D")
    check.tensor("weight", weight, "D")
    check.same_device()
    check.number("eps", eps, minimum=0.0)
    check.flag("eps_inside_sqrt", eps_inside_sqrt)
    return OP(x, weight, eps, eps_inside_sqrt, backend=backend)


def fake(x: torch.Tensor, weight: torch.Tensor, eps: float, eps_inside_sqrt: bool) -> torch.Tensor:
    return x.new_empty(x.shape)


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend == "triton" and call["x"].shape[-1] > MAX_TRITON_WIDTH:
        return [Refusal("width", f"needs a last dimension of at most {MAX_TRITON_WIDTH}, got {call['x'].shape[-1]}")]
    return []


def flops(call: Call) -> int:
    return 4 * call["x"].numel()


def nbytes(call: Call) -> int:
    x, weight = call["x"], call["weight"]
    return 2 * x.numel() * x.element_size() + weight.numel() * weight.element_size()


CASES = (
    Case("small", lambda m: {"x": m.randn(3, 5, 64), "weight": m.randn(64)}, "the plain call"),
    Case("width 1", lambda m: {"x": m.randn(4, 1), "weight": m.randn(1), "eps": 0.5}, "shortest row"),
    Case("width 257", lambda m: {"x": m.randn(2, 257), "weight": m.randn(257)}, "prime width: a masked tail"),
    Case("no rows", lambda m: {"x": m.randn(0, 8), "weight": m.randn(8)}, "zero-size"),
    Case(
        "non-contiguous",
        lambda m: {"x": m.randn(24, 6, 5).transpose(0, 2), "weight": m.randn(48)[::2]},
        "strided x and weight",
    ),
    Case(
        "eps outside",
        lambda m: {"x": m.randn(7, 33), "weight": m.randn(33), "eps": 1e-2, "eps_inside_sqrt": False},
        "the StripedHyena form, eps large enough to matter",
    ),
    Case("tiny values", lambda m: {"x": m.randn(5, 40, scale=1e-3), "weight": m.randn(40)}, "eps dominates"),
    Case("large values", lambda m: {"x": m.randn(5, 40, scale=100.0), "weight": m.randn(40)}, "squares near 1e4"),
    Case("float32 weight", lambda m: {"x": m.randn(5, 40), "weight": m.randn(40, dtype=m.wide)}, "mixed dtypes"),
    Case(
        "16k x 4096",
        lambda m: {"x": m.randn(16384, 4096), "weight": m.randn(4096)},
        "Evo-1 width",
        bench=True,
    ),
)

OP = Op(
    "rms_norm",
    rms_norm,
    "(Tensor x, Tensor weight, float eps, bool eps_inside_sqrt) -> Tensor",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
)
