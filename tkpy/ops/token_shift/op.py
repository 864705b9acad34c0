"""token_shift: every token mixed with the one before it, by several mixes at once.

The token shift of RWKV (Peng et al. 2023, arXiv:2305.13048, section 3.1; 2024, arXiv:2404.05892, "Eagle": four mixes).
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments
from tkpy.errors import Refusal
from tkpy.ops import residual
from tkpy.registry import Call, Case, Op

MOST_MIXES = 16  # of the compiled kernels


def token_shift(
    x: torch.Tensor, mix: torch.Tensor, last: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """Linear interpolations between a token and its predecessor, x read once:

        y[m, b, t] = mix[m] x[b, t] + (1 - mix[m]) x[b, t - 1],    x[b, -1] = last[b], or 0

    Args:
        x: (B, T, C), float32, bfloat16, float16 or float64, any strides, any T.
        mix: (M, C), M >= 1, any of these dtypes; products are formed in float32 (float64 for float64).
        last: (B, C), x's dtype: the token before the first. None is zero.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        y (M, B, T, C), contiguous, in x's dtype. Gradients for all three arguments.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("token_shift")
    check.tensor("x", x, "B T C")
    check.tensor("mix", mix, "M C")
    check.tensor("last", last, "B C", optional=True)
    check.same_dtype("x", "last")
    check.same_device()
    check.that(mix.shape[0] >= 1, "mix", "of at least one row", mix)
    return OP(x, mix, last, backend=backend)


def fake(x: torch.Tensor, mix: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((mix.shape[0], *x.shape))


def flops(call: Call) -> int:
    return 3 * call["mix"].shape[0] * call["x"].numel()


def nbytes(call: Call) -> int:
    outputs = call["mix"].shape[0] * call["x"].numel() * call["x"].element_size()
    return outputs + sum(t.numel() * t.element_size() for t in call.tensors)


def supports(backend: str, call: Call) -> list[Refusal]:
    """What the compiled kernels cannot take."""
    reasons = residual.supports(backend, call)
    if backend in ("cuda", "emulator"):
        if (mixes := call["mix"].shape[0]) > MOST_MIXES:
            reasons.append(Refusal("size", f"needs at most {MOST_MIXES} mixes, got {mixes}"))
        batch, length, channels = call["x"].shape
        if batch * length * -(-channels // 4) >= 2**31 or call["mix"].numel() >= 2**31:
            reasons.append(Refusal("size", f"needs B x T x C / 4 below 2^31, got {(batch, length, channels)}"))
    return reasons


def _case(batch, length, channels, mixes, *, last=False):
    def make(m):
        kwargs = {"x": m.randn(batch, length, channels), "mix": m.uniform(-0.2, 1.2, mixes, channels)}
        return kwargs | ({"last": m.randn(batch, channels)} if last else {})

    return make


CASES = (
    Case("small", _case(2, 9, 40, 4, last=True), "the plain call: Eagle's four mixes, a token carried in"),
    Case("from the beginning", _case(2, 9, 40, 2), "nothing before the first token"),
    Case("one token", _case(3, 1, 24, 4, last=True), "decoding"),
    Case("one mix", _case(1, 5, 7, 1), "M = 1, a prime width"),
    Case("seven mixes", _case(1, 5, 7, 7, last=True), "M no power of two"),
    Case("several tiles", _case(2, 77, 300, 3, last=True), "more tokens and channels than a tile"),
    Case("no tokens", _case(2, 0, 8, 4, last=True), "zero-size"),
    Case("no sequences", _case(0, 3, 8, 4), "zero-size"),
    Case(
        "non-contiguous",
        lambda m: {
            "x": m.randn(20, 6, 3).permute(2, 1, 0),
            "mix": m.uniform(0.0, 1.0, 20, 4).t(),
            "last": m.randn(3, 40)[:, ::2],
        },
        "every tensor strided",
    ),
    Case(
        "float32 mixes",
        lambda m: {"x": m.randn(2, 5, 16), "mix": m.uniform(0.0, 1.0, 4, 16, dtype=m.wide)},
        "parameters wider than x",
    ),
    Case(
        "float16 mixes",
        lambda m: {"x": m.randn(2, 5, 16), "mix": m.uniform(0.0, 1.0, 16, 4, dtype=torch.float16).t()},
        "parameters narrower than x, strided (their gradients are rounded, so not compared)",
        grad=False,
    ),
    Case("8 x 4096 x 4096", _case(8, 4096, 4096, 4, last=True), "RWKV-5 7B, time mix", bench=True),
)

OP = Op(
    "token_shift",
    token_shift,
    "(Tensor x, Tensor mix, Tensor? last) -> Tensor",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    kernel="rows_shift_forward",
)
