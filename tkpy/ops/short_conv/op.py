"""short_conv: a causal depthwise convolution of a few taps with a carried state (the one in the projections of Hyena,
Poli et al. 2023, arXiv:2302.10866, algorithm 1; StripedHyena and Mamba have it too)."""

from __future__ import annotations

from typing import Any

import torch

from tkpy.arguments import INTEGERS, Arguments, sequence_bounds
from tkpy.errors import Refusal
from tkpy.registry import Call, Case, Maker, Op

MAX_TAPS = 8
ACTIVATIONS = (None, "silu")


def short_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal depthwise cross-correlation with 1 to 8 taps.

        y[b,c,t] = activation(bias[c] + sum_j weight[c,j] * x[b,c,t-(K-1)+j])

    so weight[:, K-1] multiplies the current input. What lies before x is `initial_state`, or zero. A final state
    passed on as the next call's initial state continues the sequence exactly, however short the pieces are.

    Args:
        x: (B, C, L), float32, bfloat16 or float16; any strides.
        weight: (C, K) with K from 1 to 8, any of these dtypes.
        bias: (C,), any of these dtypes, or None.
        initial_state: (B, C, K-1) in x's dtype, the oldest input first; None is zero.
        output_final_state: whether to return the last K-1 inputs.
        cu_seqlens: (S + 1,) int32 or int64 offsets of S sequences packed into one row (B must be 1, L the total
            length); the states are then (S, C, K-1). Sequences may be empty.
        activation: None or "silu".
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        y: (B, C, L) in x's dtype, contiguous, accumulated in float32; the final state (B, C, K-1) in x's dtype,
        or None.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("short_conv")
    check.tensor("x", x, "B C L")
    check.tensor("weight", weight, "C K")
    check.that(1 <= weight.shape[1] <= MAX_TAPS, "weight", f"of 1 to {MAX_TAPS} taps", weight)
    check.tensor("bias", bias, "C", optional=True)
    check.sizes["K-1"] = weight.shape[1] - 1
    check.tensor("cu_seqlens", cu_seqlens, "bounds", dtypes=INTEGERS, optional=True)
    if cu_seqlens is not None:
        check.that(cu_seqlens.shape[0] >= 1, "cu_seqlens", "of at least 1 element", cu_seqlens)
        check.that(x.shape[0] == 1, "x", "of batch size 1 with cu_seqlens", x)
        check.sizes["S"] = cu_seqlens.shape[0] - 1
    state = "B C K-1" if cu_seqlens is None else "S C K-1"
    check.tensor("initial_state", initial_state, state, optional=True)
    check.same_dtype("x", "initial_state")
    check.same_device()
    check.flag("output_final_state", output_final_state)
    if activation is not None:
        check.choice("activation", activation, ACTIVATIONS)
    y, final = OP(x, weight, bias, initial_state, cu_seqlens, activation or "", output_final_state, backend=backend)
    return y, final if output_final_state else None


def _values(x, weight, bias, initial_state, cu_seqlens, activation, output_final_state):
    if cu_seqlens is not None:
        sequence_bounds("short_conv", "cu_seqlens", cu_seqlens, x.shape[2])


def fake(x, weight, bias, initial_state, cu_seqlens, activation, output_final_state):
    count = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (count, x.shape[1], weight.shape[1] - 1) if output_final_state else (0,)
    return x.new_empty(x.shape), x.new_empty(shape)


def flops(call: Call) -> int:
    return 2 * call["x"].numel() * call["weight"].shape[1]


def nbytes(call: Call) -> int:
    x, weight = call["x"], call["weight"]
    return 2 * x.numel() * x.element_size() + weight.numel() * weight.element_size()


def supports(backend: str, call: Call) -> list[Refusal]:
    """What the compiled kernels cannot take."""
    reasons = list[Refusal]()
    if backend == "emulator" and any(t.dtype == torch.float64 for t in call.tensors):
        reasons.append(Refusal("dtype", "needs float32, float16 or bfloat16, got float64"))
    _, channels, length = call["x"].shape
    if backend in ("cuda", "emulator") and (channels >= 2**28 or length >= 2**30):
        reasons.append(Refusal("size", f"needs fewer than 2^28 channels and 2^30 samples, got {(channels, length)}"))
    return reasons


def _case(batch: int, channels: int, length: int, taps: int, *, bias=True, state=True, activation: str | None = None):
    def make(m: Maker):
        kwargs: dict[str, Any] = {
            "x": m.randn(batch, channels, length),
            "weight": m.randn(channels, taps),
            "activation": activation,
        }
        if bias:
            kwargs["bias"] = m.randn(channels)
        if state:
            kwargs |= {"initial_state": m.randn(batch, channels, taps - 1), "output_final_state": True}
        return kwargs

    return make


def _packed(channels: int, taps: int, *bounds: int, states=True):
    def make(m: Maker):
        kwargs = _case(1, channels, bounds[-1], taps, state=False, activation="silu")(m) | {
            "cu_seqlens": m.ints(*bounds)
        }
        if states:
            count = len(bounds) - 1
            kwargs |= {"initial_state": m.randn(count, channels, taps - 1), "output_final_state": True}
        return kwargs

    return make


def _strided(m: Maker):
    return {
        "x": m.randn(2, 21, 2 * 12).transpose(1, 2)[:, ::2],
        "weight": m.randn(4, 12).T,
        "bias": m.randn(24)[::2],
        "initial_state": m.randn(3, 12, 2).permute(2, 1, 0),
        "output_final_state": True,
        "activation": "silu",
    }


CASES = (
    Case("three taps", _case(2, 24, 37, 3), "the plain call, as StripedHyena has it"),
    Case("no bias, no state", _case(2, 5, 19, 3, bias=False, state=False), "every option absent"),
    Case("silu", _case(2, 16, 19, 4, activation="silu"), "as Mamba has it"),
    Case("one tap", _case(2, 6, 9, 1), "an empty state"),
    Case("two taps", _case(1, 6, 9, 2), "the fewest with a state"),
    Case("eight taps", _case(1, 6, 23, 8, activation="silu"), "the most"),
    Case("packed", _packed(3, 4, 0, 5, 5, 6, 19, 37), "sequences of 5, 0, 1, 13 and 18, each with a state"),
    Case("packed, nothing carried", _packed(5, 3, 0, 8, 24, states=False), "no tap reaches the sequence before"),
    Case("packed, empty", _packed(3, 4, 0, 0, 0), "no tokens in two sequences"),
    Case("length 1", _case(2, 6, 1, 4), "a decode step: the state shifts by one"),
    Case("length 1 from nothing", lambda m: _case(2, 6, 1, 4, state=False)(m) | {"output_final_state": True},
         "a prompt of one token: the state is padded with zeros"),
    Case("length 3 of 4 taps", _case(2, 6, 3, 4), "exactly the state's length"),
    Case("length 5 of 8 taps", _case(2, 6, 5, 8, activation="silu"), "shorter than the state"),
    Case("no tokens", _case(2, 6, 0, 4), "the state passes through"),
    Case("no rows", _case(0, 6, 5, 4), "zero-size batch"),
    Case("no channels", _case(2, 0, 5, 4), "zero-size channels"),
    Case("non-contiguous", _strided, "every tensor strided, x with the channels fastest"),
    Case("float32 weight", lambda m: {"x": m.randn(2, 5, 17), "weight": m.randn(5, 3, dtype=m.wide)}, "mixed dtypes"),
    Case("float16 weight", lambda m: {"x": m.randn(2, 5, 17), "weight": m.randn(3, 5, dtype=torch.float16).T},
         "a weight narrower than x, strided (its gradient is rounded, so not compared)", grad=False),
    Case("large values", lambda m: {"x": m.randn(2, 5, 17, scale=100.0), "weight": m.randn(5, 3), "activation": "silu"},
         "a saturated silu"),
    Case("Evo-1 prompt", _case(1, 3 * 4096, 8192, 3), "the projections of one Evo-1 block", bench=True),
)  # fmt: skip

OP = Op(
    "short_conv",
    short_conv,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? cu_seqlens, str activation, "
    "bool output_final_state) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    values=_values,
    supports=supports,
    kernel="short_conv_forward",
)
