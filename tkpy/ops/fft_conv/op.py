"""fft_conv: gated long convolution with explicit filters by FFT (Poli et al. 2023, "Hyena Hierarchy", section 3).

The gates around the convolution and the two-sided form are those of Fu et al. 2023, "FlashFFTConv" and "Monarch Mixer".
"""

from __future__ import annotations

import math

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.errors import Refusal
from tkpy.registry import Call, Case, Op

LONGEST = 256 * 16384  # samples of a row that the kernels take, compiled or Triton's


def fft_conv(
    u: torch.Tensor,
    k: torch.Tensor,
    *,
    k_reverse: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
    pre_gate: torch.Tensor | None = None,
    post_gate: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Depthwise convolution along the sequence with filters of any length, computed in float32.

    With v = pre_gate * u,

        y[b, h, t] = post_gate * (sum_{j >= 0} k[h, j] v[t - j] + sum_{j >= 1} k_reverse[h, j - 1] v[t + j] + skip v[t])

    where v is 0 outside 0..L-1: nothing wraps. Without `k_reverse` the convolution is causal.

    Args:
        u: (B, H, L), float32, bfloat16 or float16; any L.
        k: (H, Lk), any of these dtypes (float32 filters with bfloat16 data are the usual choice); Lk may be shorter or
            longer than L.
        k_reverse: (H, Lr), the taps that look ahead; lag -j uses k_reverse[:, j - 1].
        skip: (H,).
        pre_gate, post_gate: (B, H, L), of u's dtype.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (B, H, L) in u's dtype, contiguous. Gradients of k, k_reverse and skip are accumulated in float32.

    Under `torch.autocast`, u and the gates are cast to the autocast dtype.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("fft_conv")
    check.tensor("u", u, "B H L")
    check.tensor("k", k, "H Lk")
    check.tensor("k_reverse", k_reverse, "H Lr", optional=True)
    check.tensor("skip", skip, "H", optional=True)
    check.tensor("pre_gate", pre_gate, "B H L", optional=True)
    check.tensor("post_gate", post_gate, "B H L", optional=True)
    check.same_device()
    u, pre_gate, post_gate = autocast(u, pre_gate, post_gate)
    check.tensors.update(
        {n: t for n, t in (("u", u), ("pre_gate", pre_gate), ("post_gate", post_gate)) if t is not None}
    )
    check.same_dtype("u", "pre_gate", "post_gate")
    return OP(u, k, k_reverse, skip, pre_gate, post_gate, backend=backend)


def fake(u, k, k_reverse, skip, pre_gate, post_gate):
    return u.new_empty(u.shape)


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator", "triton"):
        return []
    u = call["u"]
    reasons = []
    if backend != "triton" and u.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs u in bfloat16 or float16, got {str(u.dtype).removeprefix('torch.')}"))
    if u.shape[2] > LONGEST:
        reasons.append(Refusal("length", f"needs at most {LONGEST} samples a row, got {u.shape[2]}"))
    if u.shape[0] * u.shape[1] >= 2**31 or max(t.shape[-1] for t in call.tensors) >= 2**31:
        reasons.append(Refusal("size", f"needs fewer than 2^31 rows and taps, got {tuple(u.shape)}"))
    return reasons


def flops(call: Call) -> int:
    """Three real FFTs of twice the length (input, filter, output) and the product of the spectra."""
    batch, channels, length = call["u"].shape
    size = 2 * max(length, 1)
    transform = 2.5 * size * math.log2(size)
    return int(channels * ((2 * batch + 1) * transform + 3 * batch * size))


def nbytes(call: Call) -> int:
    return sum(t.numel() * t.element_size() for t in call.tensors) + call["u"].numel() * call["u"].element_size()


def _case(batch, channels, length, taps, *options, scale=1.0, reverse=None):
    def make(m):
        kwargs = {"u": m.randn(batch, channels, length, scale=scale), "k": m.randn(channels, taps, dtype=m.wide)}
        if "reverse" in options:
            kwargs["k_reverse"] = m.randn(channels, taps if reverse is None else reverse, dtype=m.wide)
        if "skip" in options:
            kwargs["skip"] = m.randn(channels, dtype=m.wide)
        for gate in ("pre_gate", "post_gate"):
            if gate in options or "gates" in options:
                kwargs[gate] = m.randn(batch, channels, length)
        return kwargs

    return make


def _strided(m):
    return {
        "u": m.randn(33, 2, 3).permute(1, 2, 0),
        "k": m.randn(20, 3, dtype=m.wide).T,
        "k_reverse": m.randn(6, 5, dtype=m.wide)[::2],
        "skip": m.randn(6, dtype=m.wide)[::2],
        "pre_gate": m.randn(2, 33, 3).transpose(1, 2),
        "post_gate": m.randn(1, 3, 1).expand(2, 3, 33),
    }


CASES = (
    Case("causal", _case(2, 3, 40, 40, "skip", "gates"), "the plain call: Hyena's gated causal form"),
    Case("bidirectional", _case(1, 2, 40, 40, "reverse", "skip", "gates"), "M2-BERT's form"),
    Case("no options", _case(2, 2, 64, 64), "only u and k; 2L - 1 needs exactly 128"),
    Case("length 1", _case(2, 1, 1, 1, "reverse", "skip", "gates"), "one sample: k_reverse reaches nothing"),
    Case("prime length", _case(1, 1, 127, 127, "reverse"), "an FFT length that is not 2L"),
    Case("short taps", _case(1, 2, 50, 3, "skip", "pre_gate"), "Lk < L"),
    Case("long taps", _case(2, 1, 11, 29, "reverse", "post_gate", reverse=23), "Lk > L: far taps have gradient 0"),
    Case(
        "uneven taps", _case(1, 1, 37, 5, "reverse", reverse=36), "more taps ahead than behind: padding for the longer"
    ),
    Case("no taps", _case(1, 1, 9, 0, "reverse", "skip", reverse=0), "empty filters: only the skip remains"),
    Case("no batch", _case(0, 3, 8, 8, "reverse", "skip", "gates"), "zero-size"),
    Case("no samples", _case(2, 3, 0, 4, "reverse", "skip", "gates"), "zero-size"),
    Case("strided", _strided, "every tensor non-contiguous, one gate expanded"),
    Case("large values", _case(1, 1, 33, 33, "skip", scale=100.0), "extreme magnitudes"),
    Case("tiny values", _case(1, 1, 33, 33, "skip", scale=1e-3), "extreme magnitudes"),
    Case(
        "low-precision taps",
        lambda m: {"u": m.randn(1, 1, 20), "k": m.randn(1, 20), "skip": m.randn(1)},
        "filters in the dtype of the data",
    ),
    Case("8k x 768", _case(8, 768, 8192, 8192, "skip", "gates"), "M2-BERT 8k", bench=True),
    Case("128k x 256", _case(1, 256, 131072, 131072, "skip", "gates"), "long context", bench=True),
)

OP = Op(
    "fft_conv",
    fft_conv,
    "(Tensor u, Tensor k, Tensor? k_reverse, Tensor? skip, Tensor? pre_gate, Tensor? post_gate) -> Tensor",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
)
