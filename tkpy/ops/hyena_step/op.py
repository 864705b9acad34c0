"""hyena_step: one token of a Hyena layer with a modal filter, after its projections (Poli et al. 2023,
arXiv:2302.10866, algorithm 1; Massaroli et al. 2023, "Laughing Hyena Distillery", section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.ops.hyena_layer import check_layer
from tkpy.registry import Call, Case, Maker, Op, Refusal

KERNEL_MODES, KERNEL_ROWS, KERNEL_CHANNELS = 32, 2**28, 2**25  # most of the compiled kernels


def hyena_step(
    z: torch.Tensor,
    weight: torch.Tensor,
    poles: torch.Tensor,
    residues: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
    groups: int = 1,
    fir_state: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `tkpy.short_conv`, the split into gates and `tkpy.modal_conv` make of a single token, at once and without
    rounding between them: per row

        f  = bias + sum_j weight[:, j] * [fir_state, z][:, j]       a short filter for each of 3 W channels
        x2, x1, v = f                                               by parts of W / groups channels within a group
        x' = poles x + x1 v                                         S complex states a channel
        y  = x2 * (Re sum_s residues_s x'_s + skip x1 v)

    Decoding is bound by the states, which are read and written once.

    Args:
        z: (B, 3 W), float32, bfloat16 or float16: the projections of one token.
        weight: (3 W, K) with K from 1 to 8, any floating dtype; weight[:, K-1] multiplies z.
        poles, residues: (W, S) complex64.
        bias: (3 W,), any floating dtype, or None.
        skip: (W,), any floating dtype, or None.
        groups: a divisor of W. Channels of z are [x2 | x1 | v] of the first group, then of the next; with 1,
            [all x2 | all x1 | all v].
        fir_state: (B, 3 W, K-1) in z's dtype, the last inputs, the oldest first; None is zero.
        state: (B, W, S) complex64; None is zero. No state is written to.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        y (B, W) and the new fir_state in z's dtype, and the new state, complex64 (complex128 for float64 z). Gradients
        follow torch's convention for complex tensors.

    Under `torch.autocast`, z and fir_state are cast to the autocast dtype; poles and residues never are.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    z, fir_state = autocast(z, fir_state)
    check = Arguments("hyena_step")
    check.tensor("z", z, "B 3W")
    check_layer(check, z, weight, bias, poles, residues, skip, groups, fir_state, state=state)
    # A lazy conjugate does not survive torch.compile's tracing of custom ops.
    poles, residues = poles.resolve_conj(), residues.resolve_conj()
    state = None if state is None else state.resolve_conj()
    y, fir_state, state = OP(z, weight, bias, poles, residues, skip, fir_state, state, groups, backend=backend)
    return y, fir_state, state


def fake(z, weight, bias, poles, residues, skip, fir_state, state, groups):
    dtype = torch.complex128 if z.dtype == torch.float64 else torch.complex64
    batch, (width, modes) = z.shape[0], poles.shape
    return (
        z.new_empty(batch, width),
        z.new_empty(batch, 3 * width, weight.shape[1] - 1),
        z.new_empty(batch, width, modes, dtype=dtype),
    )


def supports(backend: str, call: Call) -> list[Refusal]:
    reasons, z, poles = list[Refusal](), call["z"], call["poles"]
    if backend == "emulator" and any(t.dtype in (torch.float64, torch.complex128) for t in call.tensors):
        reasons.append(Refusal("dtype", "needs float32, float16 or bfloat16 and complex64, got float64 or complex128"))
    if backend not in ("cuda", "emulator"):
        return reasons
    if poles.shape[1] > KERNEL_MODES:
        reasons.append(Refusal("modes", f"needs at most {KERNEL_MODES} modes a channel, got {poles.shape[1]}"))
    if z.shape[0] >= KERNEL_ROWS or z.shape[1] >= KERNEL_CHANNELS:
        reasons.append(Refusal("size", f"needs z of fewer than 2^28 rows and 2^25 channels, got {tuple(z.shape)}"))
    return reasons


def flops(call: Call) -> int:
    """Per channel and mode a complex multiply-add and the real part of a product; the short filters."""
    (batch, channels), (width, modes) = call["z"].shape, call["poles"].shape
    return batch * (width * (12 * modes + 4) + 2 * channels * call["weight"].shape[1])


def nbytes(call: Call) -> int:
    """Every tensor once, y and the new states."""
    z, batch = call["z"], call["z"].shape[0]
    taps = call["weight"].shape[1]
    made = z.element_size() * z.numel() * (3 * (taps - 1) + 1) // 3 + 8 * batch * call["poles"].numel()
    return sum(t.numel() * t.element_size() for t in call.tensors) + made


EVERY = ("bias", "skip", "fir", "state")


def _complex(m: Maker, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.complex(*(m.randn(*shape, scale=scale, dtype=m.wide) for _ in range(2)))


def _case(batch: int, width: int, modes: int, taps: int, *options: str, groups: int = 1, radius=(0.3, 0.995)):
    def make(m: Maker):
        size = m.uniform(*radius, width, modes, dtype=m.wide)
        kwargs: dict[str, Any] = {
            "z": m.randn(batch, 3 * width),
            "weight": m.randn(3 * width, taps),
            "poles": torch.polar(size, m.uniform(0, 2 * math.pi, width, modes, dtype=m.wide)),
            "residues": _complex(m, width, modes, scale=0.5),
            "groups": groups,
        }
        if "bias" in options:
            kwargs["bias"] = m.randn(3 * width)
        if "skip" in options:
            kwargs["skip"] = m.randn(width)
        if "fir" in options:
            kwargs["fir_state"] = m.randn(batch, 3 * width, taps - 1)
        if "state" in options:
            kwargs["state"] = _complex(m, batch, width, modes)
        return kwargs

    return make


def _strided(m: Maker):
    kwargs = _case(3, 8, 4, 3, groups=2)(m)
    for name, dims in (("z", (1, 0)), ("weight", (1, 0)), ("poles", (1, 0))):
        kwargs[name] = kwargs[name].permute(dims).contiguous().permute(dims)
    return kwargs | {
        "residues": _complex(m, 16, 4)[1::2].conj(),
        "bias": m.randn(48)[::2],
        "skip": m.randn(1).expand(8),
        "fir_state": m.randn(2, 24, 3).permute(2, 1, 0),
        "state": _complex(m, 4, 8, 3).permute(2, 1, 0),
    }


def _float32_parameters(m: Maker):
    kwargs = _case(2, 5, 3, 3, *EVERY)(m)
    shapes = {"weight": (15, 3), "bias": (15,), "skip": (5,)}
    return kwargs | {name: m.randn(*shape, dtype=m.wide) for name, shape in shapes.items()}


def _empty_slices(m: Maker):
    """PyTorch calls an empty slice contiguous, whatever its strides."""
    kwargs = _case(2, 5, 4, 3, *EVERY)(m)
    kwargs |= {name: kwargs[name][..., 1:1] for name in ("poles", "residues", "state", "fir_state")}
    return kwargs | {"weight": kwargs["weight"][:, 2:]}


def _zero_poles(m: Maker):
    return _case(2, 3, 2, 3, *EVERY)(m) | {"poles": torch.zeros(3, 2, dtype=m.wide.to_complex())}


CASES = (
    Case("small", _case(2, 36, 8, 3, *EVERY, groups=3), "as Evo has it: columns split by groups"),
    Case("from nothing", _case(2, 5, 8, 3, "bias", "skip"), "the first token: no states"),
    Case("bare", _case(2, 4, 2, 3), "only what must be given"),
    Case("many rows", _case(7, 6, 4, 3, *EVERY, groups=2), "a batch"),
    Case("more than a block of channels", _case(2, 75, 6, 4, *EVERY, groups=5), "three blocks, the last not full"),
    Case("one tap", _case(2, 4, 4, 1, *EVERY), "an empty state of the short filter"),
    Case("two taps", _case(1, 4, 4, 2, *EVERY), "the fewest with a state"),
    Case("eight taps", _case(2, 3, 4, 8, *EVERY), "the most"),
    Case("one mode", _case(2, 5, 1, 3, *EVERY), "an odd number of modes"),
    Case("seven modes", _case(2, 5, 7, 3, *EVERY), "an odd number of modes"),
    Case("ten modes", _case(2, 5, 10, 3, *EVERY), "more than eight"),
    Case("32 modes", _case(1, 3, 32, 3, *EVERY), "the most of the kernels"),
    Case("no modes", _case(2, 5, 0, 3, *EVERY), "S = 0: only the skip"),
    Case("no rows", _case(0, 5, 4, 3, *EVERY), "zero-size batch"),
    Case("no channels", _case(2, 0, 4, 3, *EVERY), "zero-size channels"),
    Case("empty slices", _empty_slices, "no modes and one tap, cut off what has some: strides that no size explains"),
    Case("unstable", _case(1, 3, 4, 3, *EVERY, radius=(1.0, 1.05)), "|p| > 1 is legal"),
    Case("zero poles", _zero_poles, "nothing is remembered"),
    Case("non-contiguous", _strided, "every tensor strided, residues lazily conjugated"),
    Case("float32 parameters", _float32_parameters, "mixed dtypes"),
    Case("Evo-1 decoding", _case(1, 4096, 8, 3, *EVERY, groups=256), "one layer of Evo-1, one sequence", bench=True),
)

OP = Op(
    "hyena_step",
    hyena_step,
    "(Tensor z, Tensor weight, Tensor? bias, Tensor poles, Tensor residues, Tensor? skip, Tensor? fir_state, "
    "Tensor? state, int groups) -> (Tensor, Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
)
