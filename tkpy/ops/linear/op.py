"""linear: y = act(x W^T + b) + residual, the dense layer with what usually follows it in the same call."""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments, autocast, autocast_enabled
from tkpy.errors import Refusal
from tkpy.registry import Call, Case, Op

ACTIVATIONS = ("relu", "relu2", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Dense layer y = act(x W^T + bias) + residual, accumulated in float32 (float64 for float64).

    Args:
        x: (..., K), float32, bfloat16, float16 or float64, any strides.
        weight: (N, K), x's dtype, any strides.
        bias: (N,) or None, x's dtype.
        activation: None, "relu", "relu2" (relu squared; So et al. 2021, "Primer"), "gelu" (exact, by erf), "gelu_tanh"
            (its tanh approximation; Hendrycks and Gimpel 2016), "silu", "sigmoid" or "tanh".
        residual: (..., N) or None, added after the activation; x's dtype. Under `torch.autocast` x, weight and bias are
            cast to the autocast dtype, as `torch.nn.functional.linear` does, and the residual is not: a float32
            residual stream stays float32.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (..., N), contiguous, in x's dtype; in the residual's where there is one.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    x, weight, bias = autocast(x, weight, bias)
    check = Arguments("linear")
    check.tensor("x", x, "... K")
    check.tensor("weight", weight, "N K")
    check.tensor("bias", bias, "N", optional=True)
    check.tensor("residual", residual, "... N", optional=True)
    check.same_device()
    check.same_dtype("x", "weight", "bias")
    if not autocast_enabled(x.device):
        check.same_dtype("x", "residual")
    check.choice("activation", activation, (None, *ACTIVATIONS))
    if residual is not None and residual.shape[:-1] != x.shape[:-1]:
        needed = f"of the output's shape {(*x.shape[:-1], weight.shape[0])}"
        check.fail("residual", needed, f"shape {tuple(residual.shape)}")
    return OP(x, weight, bias, residual, activation, backend=backend)


def fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype if residual is None else residual.dtype)


def supports(backend: str, call: Call) -> list[Refusal]:
    x, weight = call["x"], call["weight"]
    reasons = []
    if backend in ("cuda", "emulator") and x.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(x.dtype).removeprefix('torch.')}"))
    sizes = (x.shape[:-1].numel(), *weight.shape)  # M, N, K
    if max(sizes) >= 2**31 - 512:
        reasons.append(Refusal("size", f"needs M, N and K below 2^31 - 512, got {sizes}"))
    return reasons


def flops(call: Call) -> int:
    return 2 * call["x"].numel() * call["weight"].shape[0]


def nbytes(call: Call) -> int:
    x, weight = call["x"], call["weight"]
    out = x.numel() // max(x.shape[-1], 1) * weight.shape[0]
    return sum(t.numel() * t.element_size() for t in call.tensors) + out * x.element_size()


def _activated(activation: str) -> Case:
    return Case(
        activation,
        lambda m: {"x": m.randn(2, 9, 24), "weight": m.randn(17, 24), "bias": m.randn(17), "activation": activation},
        "this activation, pre-activations of both signs up to about 15",
    )


CASES = (
    Case(
        "gelu and residual",
        lambda m: {
            "x": m.randn(3, 5, 32),
            "weight": m.randn(48, 32, scale=0.2),
            "bias": m.randn(48),
            "activation": "gelu",
            "residual": m.randn(3, 5, 48),
        },
        "every argument at once",
    ),
    Case("plain", lambda m: {"x": m.randn(7, 33), "weight": m.randn(21, 33)}, "no bias, sizes that divide nothing"),
    Case("bias", lambda m: {"x": m.randn(7, 33), "weight": m.randn(21, 33), "bias": m.randn(21)}, "bias alone"),
    Case(
        "residual",
        lambda m: {"x": m.randn(2, 3, 8), "weight": m.randn(5, 8), "residual": m.randn(2, 3, 5)},
        "residual without activation: nothing is recomputed",
    ),
    *(_activated(a) for a in ACTIVATIONS),
    Case("one vector", lambda m: {"x": m.randn(16), "weight": m.randn(4, 16)}, "no leading dimension"),
    Case(
        "small tanh",
        lambda m: {"x": m.randn(4, 8, scale=1e-3), "weight": m.randn(5, 8), "activation": "tanh"},
        "pre-activations near 0, where a tanh by exponentials loses digits",
    ),
    Case("one by one", lambda m: {"x": m.randn(1, 1), "weight": m.randn(1, 1)}, "smallest product"),
    Case(
        "one deep",
        lambda m: {"x": m.randn(5, 1), "weight": m.randn(3, 1), "bias": m.randn(3)},
        "K = 1: an outer product",
    ),
    Case(
        "one column",
        lambda m: {"x": m.randn(67, 37), "weight": m.randn(1, 37), "bias": m.randn(1), "activation": "silu"},
        "N = 1, and primes",
    ),
    Case(
        "tile + 1",
        lambda m: {
            "x": m.randn(129, 65),
            "weight": m.randn(257, 65, scale=0.2),
            "bias": m.randn(257),
            "activation": "gelu",
            "residual": m.randn(129, 257),
        },
        "one row, column and element more than the GEMM's tile of 128 x 256 x 64",
    ),
    Case(
        "aligned tiles",
        lambda m: {"x": m.randn(136, 128), "weight": m.randn(264, 128), "bias": m.randn(264), "activation": "relu"},
        "pitches in multiples of 16 bytes, several tiles: the kernels that load by TMA",
    ),
    Case(
        "no rows",
        lambda m: {"x": m.randn(2, 0, 8), "weight": m.randn(5, 8), "bias": m.randn(5), "activation": "silu"},
        "zero-size batch: zero gradients of the right shape",
    ),
    Case(
        "no inputs",
        lambda m: {"x": m.randn(3, 0), "weight": m.randn(5, 0), "bias": m.randn(5)},
        "K = 0: the bias alone",
    ),
    Case("no outputs", lambda m: {"x": m.randn(3, 4), "weight": m.randn(0, 4)}, "N = 0"),
    Case(
        "non-contiguous",
        lambda m: {
            "x": m.randn(12, 6, 5).transpose(0, 2),
            "weight": m.randn(12, 9).t(),
            "bias": m.randn(18)[::2],
            "residual": m.randn(6, 5, 9).transpose(0, 1),
            "activation": "silu",
        },
        "strided x, weight, bias and residual",
    ),
    Case(
        "saturated",
        lambda m: {"x": m.randn(6, 40, scale=20.0), "weight": m.randn(8, 40, scale=20.0), "activation": "gelu"},
        "pre-activations of some thousands: no overflow in the tails",
    ),
    Case(
        "16k x 4096 x 4096",
        lambda m: {"x": m.randn(16384, 4096), "weight": m.randn(4096, 4096, scale=0.02), "activation": "gelu"},
        "a projection of Evo-1 at 16k tokens",
        bench=True,
    ),
)

OP = Op(
    "linear",
    linear,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str? activation) -> Tensor",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    kernel="gemm",
)
