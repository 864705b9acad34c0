"""merge_state: two partial attentions over disjoint keys joined by their log-sum-exps (Dao 2023, section 3.1.2).

lse = log(exp(lse1) + exp(lse2)),   out = exp(lse1 - lse) out1 + exp(lse2 - lse) out2
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments
from tkpy.errors import Refusal
from tkpy.ops import residual
from tkpy.registry import Call, Case, Maker, Op

WIDEST = 4096  # channels of a head that the compiled kernels take


def merge_state(
    out1: torch.Tensor,
    lse1: torch.Tensor,
    out2: torch.Tensor,
    lse2: torch.Tensor,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the keys of both parts, from the attention over each.

    A part whose log-sum-exp is infinite saw no key and has no say: its `out` is not looked at (it may be NaN), its
    gradients are 0, and the other part passes unchanged, bit for bit. That holds for -inf, which `tkpy.attention` and
    FlashAttention-3 give to such rows, and for +inf, which FlashAttention-2 gives. Where neither part saw a key the
    result is 0 and -inf. A log-sum-exp that is NaN makes its row NaN.

    Args:
        out1, out2: (B, S, H, D), or packed (total, H, D), as `tkpy.attention` returns.
        lse1, lse2: natural log-sum-exp, (B, H, S) or packed (H, total); float32 (float64 for float64).
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (out, lse) like the parts; both are differentiable.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("merge_state")
    packed = isinstance(out1, torch.Tensor) and out1.dim() == 3
    for number, out, lse in ((1, out1, lse1), (2, out2, lse2)):
        check.tensor(f"out{number}", out, "total H D" if packed else "B S H D")
        wide = torch.float64 if out.dtype == torch.float64 else torch.float32
        check.tensor(f"lse{number}", lse, "H total" if packed else "B H S", dtypes=(wide,))
    check.same_dtype("out1", "out2")
    check.same_device()
    return OP(out1, lse1, out2, lse2, backend=backend)


def fake(out1: torch.Tensor, lse1: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return out1.new_empty(out1.shape), lse1.new_empty(lse1.shape)


def supports(backend: str, call: Call) -> list[Refusal]:
    """What the compiled kernels cannot take."""
    reasons = residual.supports(backend, call)
    if backend in ("cuda", "emulator") and call["out1"].shape[-1] > WIDEST:
        reasons.append(Refusal("size", f"needs heads of at most {WIDEST} channels, got {call['out1'].shape[-1]}"))
    return reasons


def flops(call: Call) -> int:
    return 3 * call["out1"].numel()


def nbytes(call: Call) -> int:
    return 3 * sum(call[name].numel() * call[name].element_size() for name in ("out1", "lse1"))


def _parts(m: Maker, b: int, s: int, h: int, d: int) -> dict[str, torch.Tensor]:
    shapes = {"out1": (b, s, h, d), "lse1": (b, h, s), "out2": (b, s, h, d), "lse2": (b, h, s)}
    return {name: m.randn(*shape, dtype=m.wide if name[:3] == "lse" else None) for name, shape in shapes.items()}


def _unseen(m: Maker, infinity: float) -> dict[str, torch.Tensor]:
    parts = _parts(m, 1, 4, 2, 8)
    parts["lse1"][:, :, 1], parts["lse2"][:, :, 2] = infinity, infinity
    parts["lse1"][:, :, 3] = parts["lse2"][:, :, 3] = infinity
    parts["out2"][:, 2] = float("nan")
    return parts


CASES = (
    Case("small", lambda m: _parts(m, 2, 5, 3, 16), "the plain call"),
    Case(
        "packed",
        lambda m: (
            {"out1": m.randn(7, 3, 8), "lse1": m.randn(3, 7, dtype=m.wide)}
            | {"out2": m.randn(7, 3, 8), "lse2": m.randn(3, 7, dtype=m.wide)}
        ),
        "(total, H, D)",
    ),
    Case("unseen", lambda m: _unseen(m, -float("inf")), "no key in the first, the second or either part; NaN there"),
    Case("unseen, FlashAttention-2", lambda m: _unseen(m, float("inf")), "+inf marks the same"),
    Case(
        "large",
        lambda m: {
            **_parts(m, 1, 3, 2, 8),
            "lse1": m.uniform(3000.0, 3003.0, 1, 2, 3, dtype=m.wide),
            "lse2": m.uniform(3000.0, 3003.0, 1, 2, 3, dtype=m.wide),
        },
        "exp of either log-sum-exp is infinite",
    ),
    Case("empty", lambda m: _parts(m, 2, 0, 3, 16), "zero-size"),
    Case(
        "strided",
        lambda m: (
            {"out1": m.randn(2, 3, 5, 8).transpose(1, 2), "lse1": m.randn(2, 5, 3, dtype=m.wide).transpose(1, 2)}
            | {"out2": m.randn(2, 5, 3, 16)[..., ::2], "lse2": m.randn(2, 3, 10, dtype=m.wide)[..., ::2]}
        ),
        "non-contiguous in every argument",
    ),
    Case("8k x 32 x 128", lambda m: _parts(m, 1, 8192, 32, 128), "a shared prefix of a batch", bench=True),
)

OP = Op(
    "merge_state",
    merge_state,
    "(Tensor out1, Tensor lse1, Tensor out2, Tensor lse2) -> (Tensor, Tensor)",
    fake=fake,
    supports=supports,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    kernel="rows_merge_forward",
)
