"""gated_mlp: y = (act(x W1^T) * (x W2^T)) W3^T, the gated MLP (SwiGLU, GeGLU: Shazeer 2020) in one call."""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.errors import Refusal
from tkpy.registry import Call, Case, Maker, Op

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def gated_mlp(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    w3: torch.Tensor,
    *,
    activation: str = "silu",
    recompute: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """y = (act(x W1^T) * (x W2^T)) W3^T; products accumulated in float32 (float64 for float64).

    Where a gradient is wanted, both inner products are kept for it, before the activation: two matrices (..., I).

    Args:
        x: (..., C), float32, bfloat16, float16 or float64, any strides.
        w1, w2: (I, C), the gate's and the value's weights, x's dtype, any strides.
        w3: (O, I), x's dtype.
        activation: of the gate: "silu" (SwiGLU), "gelu" (GeGLU, exact), "gelu_tanh" or "relu".
        recompute: keep nothing of the inner width; the backward computes both inner products again, two products beside
            its six.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (..., O), contiguous, in x's dtype; under `torch.autocast` the operands are cast as for torch's own matmuls. The
        gated product is rounded to that dtype before the last product.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    x, w1, w2, w3 = autocast(x, w1, w2, w3)
    check = Arguments("gated_mlp")
    check.tensor("x", x, "... C")
    check.tensor("w1", w1, "I C")
    check.tensor("w2", w2, "I C")
    check.tensor("w3", w3, "O I")
    check.same_dtype("x", "w1", "w2", "w3")
    check.same_device()
    check.choice("activation", activation, ACTIVATIONS)
    keep = not recompute and torch.is_grad_enabled() and any(t.requires_grad for t in (x, w1, w2, w3))
    y, _ = OP(x, w1, w2, w3, activation, keep, backend=backend)
    return y


def fake(
    x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor, activation: str, keep: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    lead = x.shape[:-1]
    return x.new_empty((*lead, w3.shape[0])), x.new_empty((2, *lead, w1.shape[0] if keep else 0))


def supports(backend: str, call: Call) -> list[Refusal]:
    x, w1, w3 = call["x"], call["w1"], call["w3"]
    reasons = []
    if backend in ("cuda", "emulator") and x.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(x.dtype).removeprefix('torch.')}"))
    sizes = (_rows(call), *w1.shape, w3.shape[0])
    if max(sizes) >= 2**31 - 512:
        reasons.append(Refusal("size", f"needs rows, C, I and O below 2^31 - 512, got {sizes}"))
    return reasons


def _rows(call: Call) -> int:
    return call["x"].shape[:-1].numel()


def flops(call: Call) -> int:
    return 2 * _rows(call) * sum(call[name].numel() for name in ("w1", "w2", "w3"))


def nbytes(call: Call) -> int:
    operands = sum(t.numel() * t.element_size() for t in call.tensors)
    return operands + _rows(call) * call["w3"].shape[0] * call["x"].element_size()


def _case(name: str, why: str, rows: tuple[int, ...], c: int, i: int, o: int, bench: bool = False, **more: str) -> Case:
    def make(m: Maker) -> dict[str, object]:
        scale = max(c, 1) ** -0.5
        w1, w2 = m.randn(i, c, scale=scale), m.randn(i, c, scale=scale)
        return {"x": m.randn(*rows, c), "w1": w1, "w2": w2, "w3": m.randn(o, i, scale=max(i, 1) ** -0.5), **more}

    return Case(name, make, why, bench=bench)


CASES = (
    _case("small", "the plain call: SwiGLU", (2, 5), 24, 40, 16),
    *(_case(a, "this activation", (7,), 16, 24, 8, activation=a) for a in ACTIVATIONS),
    _case("odd sizes", "nothing divides anything", (3, 3), 13, 29, 7, activation="gelu"),
    _case("several tiles", "more rows and columns than a tile", (300,), 72, 264, 136),
    _case("one vector", "no leading dimension", (), 8, 16, 8),
    _case("no rows", "zero-size batch", (2, 0), 8, 16, 8),
    _case("no inputs", "C = 0: act(0) * 0", (3,), 0, 4, 2),
    _case("no middle", "I = 0: zeros", (3,), 4, 0, 2),
    _case("no outputs", "O = 0", (3,), 4, 8, 0),
    Case(
        "non-contiguous",
        lambda m: {
            "x": m.randn(12, 6, 5).transpose(0, 2),
            "w1": m.randn(12, 18, scale=0.3).t(),
            "w2": m.randn(18, 24, scale=0.3)[:, ::2],
            "w3": m.randn(18, 9, scale=0.3).t(),
        },
        "strided x and weights",
    ),
    Case(
        "saturated",
        lambda m: {
            "x": m.randn(5, 16, scale=20.0),
            "w1": m.randn(24, 16, scale=20.0),
            "w2": m.randn(24, 16, scale=0.01),
            "w3": m.randn(8, 24, scale=0.01),
        },
        "gates of some thousands, of both signs",
    ),
    _case("16k x 4096 x 14336", "the MLP of Evo-1-131k's size at 16k tokens", (16384,), 4096, 14336, 4096, bench=True),
)

OP = Op(
    "gated_mlp",
    gated_mlp,
    "(Tensor x, Tensor w1, Tensor w2, Tensor w3, str activation, bool keep) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    saves=(1,),
    kernel="gemm_gated",
)
