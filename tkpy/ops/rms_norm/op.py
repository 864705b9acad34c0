"""rms_norm: y = weight * x / rms(x) over the last dimension.

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", arXiv 1910.07467, eq. 4.
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments
from tkpy.ops import residual as stream
from tkpy.registry import Call, Case, Op


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    eps_inside_sqrt: bool = True,
    residual: torch.Tensor | None = None,
    dropout: float = 0.0,
    training: bool = True,
    dropout_seed: torch.Tensor | None = None,
    return_residual: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Root-mean-square normalisation over the last dimension, statistics in float32.

    y = weight * x / sqrt(mean(x^2) + eps), or weight * x / (sqrt(mean(x^2)) + eps) with `eps_inside_sqrt=False`
    (as StripedHyena and Evo have it).

    Args:
        x: (..., D), float32, bfloat16 or float16.
        weight: (D,), any of these dtypes.
        eps: non-negative.
        residual: x's shape, in x's dtype or float32 (float64 for float64 x): y is then the norm of z = residual + x.
        dropout: from 0 to below 1: so much of x is dropped, and the rest divided by 1 - dropout, before it is added.
        training: False switches dropout off.
        dropout_seed: (1,) int64, which fixes the mask; None draws one from torch's generator.
        return_residual: return (y, z), the new residual stream.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        y (..., D) in x's dtype, contiguous; with `return_residual` also z, in the residual's dtype (x itself where
        there is neither residual nor dropout).

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
    check.flag("return_residual", return_residual)
    p, seed = stream.check_options(check, x, residual, dropout, training, dropout_seed)
    y, z = OP(x, weight, residual, seed, eps, eps_inside_sqrt, p, backend=backend)
    return (y, z if stream.joins(residual, p) else x) if return_residual else y


def fake(x, weight, residual, seed, eps, eps_inside_sqrt, dropout):
    return x.new_empty(x.shape), stream.fake_stream(x, residual, dropout)


def flops(call: Call) -> int:
    return (4 + 2 * stream.joins(call["residual"], call["dropout"])) * call["x"].numel()


CASES = (
    Case("small", lambda m: {"x": m.randn(3, 5, 64), "weight": m.randn(64)}, "the plain call"),
    Case("width 1", lambda m: {"x": m.randn(4, 1), "weight": m.randn(1), "eps": 0.5}, "shortest row"),
    Case("width 257", lambda m: {"x": m.randn(2, 257), "weight": m.randn(257)}, "prime width: a masked tail"),
    Case("no rows", lambda m: {"x": m.randn(0, 8), "weight": m.randn(8)}, "zero-size"),
    Case("no columns", lambda m: {"x": m.randn(3, 0), "weight": m.randn(0)}, "D = 0"),
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
    Case(
        "huge values",
        lambda m: {"x": m.randn(5, 40, scale=100.0 if m.dtype == torch.float16 else 1e16), "weight": m.randn(40)},
        "float32 and bfloat16 hold the squares, not a third power",
    ),
    Case("float32 weight", lambda m: {"x": m.randn(5, 40), "weight": m.randn(40, dtype=m.wide)}, "mixed dtypes"),
    Case(
        "wide",
        lambda m: {"x": m.randn(2, 20001), "weight": m.randn(20001), "residual": m.randn(2, 20001)},
        "wider than what a kernel holds in registers",
    ),
    Case(
        "residual",
        lambda m: {"x": m.randn(5, 40), "weight": m.randn(40), "residual": m.randn(5, 40), "return_residual": True},
        "the new stream is an output too",
    ),
    Case(
        "float32 residual",
        lambda m: {
            "x": m.randn(24, 6, 5).transpose(0, 2),
            "weight": m.randn(24),
            "residual": m.randn(5, 6, 24, dtype=m.wide),
            "return_residual": True,
        },
        "a stream wider than x, which is strided",
    ),
    Case(
        "dropout",
        lambda m: {
            "x": m.randn(3, 3, 40),
            "weight": m.randn(40),
            "dropout": 0.3,
            "dropout_seed": m.randint(0, 2**62, 1),
            "return_residual": True,
        },
        "the same mask in every backend and in the gradient",
    ),
    Case(
        "dropout and residual",
        lambda m: {
            "x": m.randn(7, 257),
            "weight": m.randn(257),
            "residual": m.randn(7, 257, dtype=m.wide),
            "dropout": 0.5,
            "dropout_seed": m.randint(0, 2**62, 1),
        },
        "everything, at a prime width; the stream is not returned",
    ),
    Case(
        "16k x 4096",
        lambda m: {"x": m.randn(16384, 4096), "weight": m.randn(4096)},
        "Evo-1 width",
        bench=True,
    ),
)

#: The torch op returns z too, which its backward reads: an empty tensor where z is x.
OP = Op(
    "rms_norm",
    rms_norm,
    "(Tensor x, Tensor weight, Tensor? residual, Tensor? seed, float eps, bool eps_inside_sqrt, float dropout) "
    "-> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=stream.nbytes,
    supports=stream.supports,
    saves=(1,),
    kernel="rows_norm_forward",
)
