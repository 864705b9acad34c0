"""layer_norm: y = weight * (x - mean) / sqrt(var + eps) + bias over the last dimension.

Ba, Kiros and Hinton 2016, "Layer Normalization", eq. 4.
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments
from tkpy.ops import residual as stream
from tkpy.registry import Call, Case, Op


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
    dropout: float = 0.0,
    training: bool = True,
    dropout_seed: torch.Tensor | None = None,
    return_residual: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Layer normalisation over the last dimension, statistics in float32 (float64 for float64 inputs).

    y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, with the variance of the population (divided by D).

    Args:
        x: (..., D), float32, bfloat16, float16 or float64.
        weight: (D,), any of these dtypes, or None for ones.
        bias: (D,), any of these dtypes, or None for zeros.
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
    check = Arguments("layer_norm")
    check.tensor("x", x, "... D")
    check.tensor("weight", weight, "D", optional=True)
    check.tensor("bias", bias, "D", optional=True)
    check.same_device()
    check.number("eps", eps, minimum=0.0)
    check.flag("return_residual", return_residual)
    p, seed = stream.check_options(check, x, residual, dropout, training, dropout_seed)
    y, _, _, z = OP(x, weight, bias, residual, seed, eps, p, backend=backend)
    return (y, z if stream.joins(residual, p) else x) if return_residual else y


def fake(x, weight, bias, residual, seed, eps, dropout):
    wide, row = stream.wide_dtype(x), (*x.shape[:-1], 1)
    statistics = x.new_empty(row, dtype=wide), x.new_empty(row, dtype=wide)
    return x.new_empty(x.shape), *statistics, stream.fake_stream(x, residual, dropout)


def flops(call: Call) -> int:
    return (8 + 2 * stream.joins(call["residual"], call["dropout"])) * call["x"].numel()


CASES = (
    Case("small", lambda m: {"x": m.randn(3, 5, 64), "weight": m.randn(64), "bias": m.randn(64)}, "the plain call"),
    Case("width 257", lambda m: {"x": m.randn(2, 257), "weight": m.randn(257), "bias": m.randn(257)}, "prime width"),
    Case(
        "width 1",
        lambda m: {"x": m.randn(4, 1), "weight": m.randn(1), "bias": m.randn(1)},
        "variance 0: y is the bias, and dx and dweight are 0 up to rounding (so not compared)",
        grad=False,
    ),
    Case(
        "width 20001",
        lambda m: {"x": m.randn(2, 20001) + 3.0, "weight": m.randn(20001), "bias": m.randn(20001)},
        "wider than what a kernel holds in registers",
    ),
    Case("no bias", lambda m: {"x": m.randn(7, 33), "weight": m.randn(33), "bias": None}, "one parameter absent"),
    Case("no weight", lambda m: {"x": m.randn(7, 33), "weight": None, "bias": m.randn(33)}, "the other one absent"),
    Case("bare", lambda m: {"x": m.randn(7, 33), "weight": None, "bias": None}, "both absent"),
    Case("no rows", lambda m: {"x": m.randn(0, 8), "weight": m.randn(8), "bias": m.randn(8)}, "zero-size"),
    Case("no columns", lambda m: {"x": m.randn(3, 0), "weight": m.randn(0), "bias": m.randn(0)}, "D = 0"),
    Case(
        "non-contiguous",
        lambda m: {"x": m.randn(24, 6, 5).transpose(0, 2), "weight": m.randn(48)[::2], "bias": m.randn(72)[::3]},
        "strided x, weight and bias",
    ),
    Case(
        "float32 parameters",
        lambda m: {"x": m.randn(5, 40), "weight": m.randn(40, dtype=m.wide), "bias": m.randn(40, dtype=m.wide)},
        "mixed dtypes",
    ),
    Case(
        "bfloat16 weight",
        lambda m: {"x": m.randn(5, 40), "weight": m.randn(40, dtype=torch.bfloat16), "bias": m.randn(40)},
        "a parameter narrower than x and than the other (its gradient is rounded to bfloat16, so not compared)",
        grad=False,
    ),
    Case(
        "tiny values",
        lambda m: {"x": m.randn(5, 40, scale=1e-3), "weight": m.randn(40), "bias": m.randn(40), "eps": 1e-5},
        "eps dominates",
    ),
    Case(
        "large values",
        lambda m: {"x": m.randn(5, 40, scale=1000.0), "weight": m.randn(40), "bias": m.randn(40), "eps": 1e-12},
        "squares near 1e6, as M2-BERT's eps",
    ),
    Case(
        "offset",
        lambda m: {"x": m.randn(5, 256) + 30.0, "weight": m.randn(256), "bias": m.randn(256)},
        "a mean of 30 deviations: mean(x^2) - mean(x)^2 would cancel",
    ),
    Case(
        "residual",
        lambda m: {
            "x": m.randn(5, 40),
            "weight": m.randn(40),
            "bias": m.randn(40),
            "residual": m.randn(5, 40),
            "return_residual": True,
        },
        "the new stream is an output too",
    ),
    Case(
        "float32 residual",
        lambda m: {
            "x": m.randn(24, 6, 5).transpose(0, 2),
            "weight": m.randn(24),
            "bias": None,
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
            "bias": m.randn(40),
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
            "bias": m.randn(257),
            "residual": m.randn(7, 257, dtype=m.wide),
            "dropout": 0.5,
            "dropout_seed": m.randint(0, 2**62, 1),
        },
        "everything, at a prime width; the stream is not returned",
    ),
    Case(
        "16k x 4096",
        lambda m: {"x": m.randn(16384, 4096), "weight": m.randn(4096), "bias": m.randn(4096)},
        "RWKV-5 7B width",
        bench=True,
    ),
)

#: The torch op also returns the row statistics, mean and 1 / sqrt(var + eps), and z (empty where z is x),
#: which its backward reads.
OP = Op(
    "layer_norm",
    layer_norm,
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? seed, float eps, float dropout) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=stream.nbytes,
    supports=stream.supports,
    saves=(1, 2, 3),
    kernel="rows_norm_forward",
)
