"""rotary: rotary position embedding, half-split pairs (Su et al. 2021, "RoFormer", eq. 34; the pairing of GPT-NeoX)."""

from __future__ import annotations

import torch

from tkpy.arguments import INTEGERS, Arguments
from tkpy.errors import Refusal
from tkpy.ops import residual
from tkpy.registry import Call, Case, Op

MOST_CHANNELS = 512  # of a head in the compiled kernels


def rotary(
    x: torch.Tensor,
    positions: torch.Tensor,
    *,
    base: float = 10000.0,
    scaling: float = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Rotate channel pairs (i, i + D/2) of x by the angle positions / scaling * base^(-2i/D).

    y[i] = x[i] cos - x[i + D/2] sin,  y[i + D/2] = x[i + D/2] cos + x[i] sin.

    The angles are formed in float64 and their cosines and sines rounded to float32 (float64 for float64 x). An angle
    formed in float32, as the original implementations do, is off by up to 4e-3 radians at position 131071: half a unit
    in the last place of 1e5 is that large. Long contexts should not pay for it; short ones see no difference.

    Args:
        x: (B, S, H, D) or packed (total, H, D), D even; float32, bfloat16, float16 or float64.
        positions: (S,) or (B, S), for packed x (total,); int32 or int64, any value, in any order.
        base: above 0 (10000; 500000 in StripedHyena-7B).
        scaling: positions are divided by it (linear interpolation, Chen et al. 2023; 16 in Evo-1 131k); above 0.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        x's shape and dtype, contiguous.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("rotary")
    check.tensor("x", x, "... S H D")
    check.that(x.dim() in (3, 4), "x", "of shape (B, S, H, D) or (total, H, D)", x)
    check.that(x.shape[-1] % 2 == 0, "x", "of an even last dimension", x)
    check.tensor("positions", positions, "... S", dtypes=INTEGERS)
    if positions.dim() != 1 and positions.shape != x.shape[:-2]:
        check.fail("positions", f"of shape (S,) or (B, S) = {tuple(x.shape[:-2])}", f"shape {tuple(positions.shape)}")
    check.same_device()
    check.number("base", base, above=0.0)
    check.number("scaling", scaling, above=0.0)
    return OP(x, positions, base, scaling, backend=backend)


def fake(x: torch.Tensor, positions: torch.Tensor, base: float, scaling: float) -> torch.Tensor:
    return x.new_empty(x.shape)


def flops(call: Call) -> int:
    return 3 * call["x"].numel()


def nbytes(call: Call) -> int:
    x, positions = call["x"], call["positions"]
    return 2 * x.numel() * x.element_size() + positions.numel() * positions.element_size()


def supports(backend: str, call: Call) -> list[Refusal]:
    """What the compiled kernels cannot take."""
    reasons = residual.supports(backend, call)
    x = call["x"]
    if backend in ("cuda", "emulator"):
        if x.shape[-1] > MOST_CHANNELS:
            reasons.append(Refusal("size", f"needs heads of at most {MOST_CHANNELS} channels, got {x.shape[-1]}"))
        if x.shape[:-2].numel() * -(-x.shape[-2] // 8) * -(-x.shape[-1] // 8) >= 2**31:
            reasons.append(Refusal("size", f"needs tokens x heads / 8 x channels / 8 below 2^31, got {tuple(x.shape)}"))
    return reasons


CASES = (
    Case("small", lambda m: {"x": m.randn(2, 5, 3, 16), "positions": m.ints(0, 1, 2, 3, 4)}, "the plain call"),
    Case(
        "positions per row",
        lambda m: {"x": m.randn(2, 7, 2, 8), "positions": m.randint(0, 5000, 2, 7)},
        "(B, S) positions out of order, int64",
    ),
    Case("packed", lambda m: {"x": m.randn(9, 2, 32), "positions": m.ints(0, 1, 2, 3, 0, 1, 2, 3, 4)}, "(total, H, D)"),
    Case(
        "far",
        lambda m: {"x": m.randn(1, 4, 2, 128), "positions": m.ints(131071, 100000, 1048575, 2**31 - 1)},
        "positions where float32 angles are wrong",
    ),
    Case("negative", lambda m: {"x": m.randn(1, 3, 1, 4), "positions": m.ints(-1, -5, 7)}, "positions below zero"),
    Case(
        "base and scaling",
        lambda m: {"x": m.randn(1, 3, 2, 64), "positions": m.ints(3, 17, 8190), "base": 500000.0, "scaling": 16.0},
        "both options",
    ),
    Case("one pair", lambda m: {"x": m.randn(1, 1, 1, 2), "positions": m.ints(1)}, "D = 2, length 1"),
    Case("eleven heads", lambda m: {"x": m.randn(1, 3, 11, 8), "positions": m.ints(2, 0, 9)}, "no multiple of eight"),
    Case("no tokens", lambda m: {"x": m.randn(2, 0, 3, 8), "positions": m.ints()}, "zero length"),
    Case("no batch", lambda m: {"x": m.randn(0, 3, 2, 8), "positions": m.ints(0, 1, 2)}, "zero-size"),
    Case("no channels", lambda m: {"x": m.randn(1, 3, 2, 0), "positions": m.ints(0, 1, 2)}, "D = 0"),
    Case(
        "non-contiguous",
        lambda m: {"x": m.randn(2, 5, 3, 4, 16)[:, :, 1].transpose(1, 2), "positions": m.randint(0, 99, 8)[::2]},
        "a slice of a packed qkv, strided positions",
    ),
    Case(
        "8k x 32 x 128",
        lambda m: {"x": m.randn(2, 8192, 32, 128), "positions": m.randint(0, 8192, 8192)},
        "queries of Evo-1",
        bench=True,
    ),
)

OP = Op(
    "rotary",
    rotary,
    "(Tensor x, Tensor positions, float base, float scaling) -> Tensor",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    kernel="rows_rotary",
)
