"""hyena_mixer: what a Hyena layer with modal filters does between its projections (Poli et al. 2023, arXiv:2302.10866,
algorithm 1; Massaroli et al. 2023, "Laughing Hyena Distillery", section 3), for a sequence."""

from __future__ import annotations

import math
from typing import Any

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.ops.hyena_layer import check_layer
from tkpy.registry import Call, Case, Maker, Op, Refusal

KERNEL_MODES, KERNEL_SIZE, KERNEL_CHANNELS = 32, 2**29, 2**25  # most of the compiled kernels


def hyena_mixer(
    z: torch.Tensor,
    weight: torch.Tensor,
    poles: torch.Tensor,
    residues: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
    groups: int = 1,
    fir_state: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`tkpy.short_conv`, the split into gates and `tkpy.modal_conv` at once, on projections as a linear layer leaves
    them: per sequence

        f_t = bias + sum_j weight[:, j] * z_{t-(K-1)+j}             a short filter for each of 3 W channels
        x2, x1, v = f                                               by parts of W / groups channels within a group
        x_t = poles x_{t-1} + x1_t v_t                              S complex states a channel
        y_t = x2_t * (Re sum_s residues_s x_{t,s} + skip x1_t v_t)

    Two states carry all that the next piece needs: a sequence may come in pieces of any length. A single token
    is `tkpy.hyena_step`'s.

    Args:
        z: (B, L, 3 W), float32, bfloat16 or float16; any L, any strides.
        weight: (3 W, K) with K from 1 to 8, any floating dtype; weight[:, K-1] multiplies the current input.
        poles, residues: (W, S) complex64, finite; as of `tkpy.modal_conv`.
        bias: (3 W,), any floating dtype, or None.
        skip: (W,), any floating dtype, or None.
        groups: a divisor of W. Channels of z are [x2 | x1 | v] of the first group, then of the next; with 1,
            [all x2 | all x1 | all v].
        fir_state: (B, 3 W, K-1) in z's dtype, the inputs before the first, the oldest first; None is zero.
        initial_state: (B, W, S) complex64; None is zero. No state is written to.
        output_final_state: also return both states after the last input.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        y (B, L, W) in z's dtype, and the new fir_state in z's dtype and the final state, complex64 (complex128 for
        float64 z), or None and None. Gradients follow torch's convention for complex tensors.

    Under `torch.autocast`, z and fir_state are cast to the autocast dtype; poles and residues never are.

    Raises:
        TypeError, ValueError: malformed arguments; a pole that is infinite or NaN.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    z, fir_state = autocast(z, fir_state)
    check = Arguments("hyena_mixer")
    check.tensor("z", z, "B L 3W")
    check_layer(check, z, weight, bias, poles, residues, skip, groups, fir_state, initial_state=initial_state)
    check.flag("output_final_state", output_final_state)
    # A lazy conjugate does not survive torch.compile's tracing of custom ops.
    poles, residues = poles.resolve_conj(), residues.resolve_conj()
    initial_state = None if initial_state is None else initial_state.resolve_conj()
    y, inputs, state = OP(
        z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state, backend=backend
    )
    return y, inputs if output_final_state else None, state if output_final_state else None


def fake(z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state):
    dtype = torch.complex128 if z.dtype == torch.float64 else torch.complex64
    (batch, length, channels), (width, modes) = z.shape, poles.shape
    y = z.new_empty(batch, length, width)
    if not output_final_state:
        return y, z.new_empty(0), z.new_empty(0, dtype=dtype)
    return y, z.new_empty(batch, channels, weight.shape[1] - 1), z.new_empty(batch, width, modes, dtype=dtype)


def values(z, weight, bias, poles, *others) -> None:
    """Poles are finite. Not looked at while a CUDA graph is captured, which allows no synchronisation."""
    if poles.numel() == 0 or (poles.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    largest = torch.linalg.vector_norm(torch.view_as_real(poles.detach()), math.inf).item()
    Arguments("hyena_mixer").that(math.isfinite(largest), "poles", "finite", largest)


def supports(backend: str, call: Call) -> list[Refusal]:
    reasons, z, poles = list[Refusal](), call["z"], call["poles"]
    if backend == "emulator" and any(t.dtype in (torch.float64, torch.complex128) for t in call.tensors):
        reasons.append(Refusal("dtype", "needs float32, float16 or bfloat16 and complex64, got float64 or complex128"))
    if backend not in ("cuda", "emulator"):
        return reasons
    if poles.shape[1] > KERNEL_MODES:
        reasons.append(Refusal("modes", f"needs at most {KERNEL_MODES} modes a channel, got {poles.shape[1]}"))
    if max(z.shape) >= KERNEL_SIZE or z.shape[2] >= KERNEL_CHANNELS:
        needed = "needs sizes of z below 2^29, and fewer than 2^25 channels"
        reasons.append(Refusal("size", f"{needed}, got {tuple(z.shape)}"))
    return reasons


def flops(call: Call) -> int:
    """Per sample, channel and mode a complex multiply-add and the real part of a product; the short filters."""
    (batch, length, channels), (width, modes) = call["z"].shape, call["poles"].shape
    return batch * length * (width * (12 * modes + 4) + 2 * channels * call["weight"].shape[1])


def nbytes(call: Call) -> int:
    """Every tensor once, y and the new states."""
    z, taps, made = call["z"], call["weight"].shape[1], 0
    if call["output_final_state"]:
        made = z.shape[0] * (z.shape[2] * (taps - 1) * z.element_size() + 8 * call["poles"].numel())
    return sum(t.numel() * t.element_size() for t in call.tensors) + z.numel() // 3 * z.element_size() + made


EVERY = ("bias", "skip", "fir", "initial", "final")


def _complex(m: Maker, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.complex(*(m.randn(*shape, scale=scale, dtype=m.wide) for _ in range(2)))


def _case(
    batch: int, length: int, width: int, modes: int, taps: int, *options: str, groups: int = 1, radius=(0.3, 0.995)
):
    def make(m: Maker):
        size = m.uniform(*radius, width, modes, dtype=m.wide)
        kwargs: dict[str, Any] = {
            "z": m.randn(batch, length, 3 * width),
            "weight": m.randn(3 * width, taps, scale=0.5),
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
        if "initial" in options:
            kwargs["initial_state"] = _complex(m, batch, width, modes)
        if "final" in options:
            kwargs["output_final_state"] = True
        return kwargs

    return make


def _strided(m: Maker):
    kwargs = _case(2, 70, 8, 4, 3, groups=2)(m)
    for name, dims in (("z", (2, 0, 1)), ("weight", (1, 0)), ("poles", (1, 0))):
        back = [dims.index(i) for i in range(len(dims))]
        kwargs[name] = kwargs[name].permute(dims).contiguous().permute(back)
    return kwargs | {
        "residues": _complex(m, 16, 4)[1::2].conj(),
        "bias": m.randn(48)[::2],
        "skip": m.randn(1).expand(8),
        "fir_state": m.randn(2, 24, 2).permute(2, 1, 0),
        "initial_state": _complex(m, 4, 8, 2).permute(2, 1, 0),
        "output_final_state": True,
    }


def _float32_parameters(m: Maker):
    kwargs = _case(2, 20, 5, 3, 3, *EVERY)(m)
    shapes = {"weight": (15, 3), "bias": (15,), "skip": (5,)}
    return kwargs | {name: m.randn(*shape, dtype=m.wide) for name, shape in shapes.items()}


def _empty_slices(m: Maker):
    """PyTorch calls an empty slice contiguous, whatever its strides."""
    kwargs = _case(2, 20, 5, 4, 3, *EVERY)(m)
    kwargs |= {name: kwargs[name][..., 1:1] for name in ("poles", "residues", "initial_state", "fir_state")}
    return kwargs | {"weight": kwargs["weight"][:, 2:]}


def _zero_poles(m: Maker):
    return _case(2, 20, 3, 2, 3, *EVERY)(m) | {"poles": torch.zeros(3, 2, dtype=m.wide.to_complex())}


CASES = (
    Case("small", _case(2, 100, 12, 8, 3, *EVERY, groups=3), "as Evo has it: columns split by groups, a tail"),
    Case("from nothing", _case(2, 33, 5, 8, 3, "bias", "skip", "final"), "the first piece: no states"),
    Case("bare", _case(2, 33, 4, 2, 3), "only what must be given"),
    Case("whole rows", _case(1, 130, 16, 4, 3, *EVERY, groups=2), "channels in multiples of 16 bytes"),
    Case("one sample", _case(2, 1, 8, 8, 3, *EVERY), "shorter than the short filter"),
    Case("two samples", _case(2, 2, 3, 4, 5, *EVERY), "shorter than the short filter, whose state stays in part"),
    Case("chunk", _case(2, 64, 12, 2, 3, *EVERY), "chunk edge"),
    Case("chunk + 1", _case(2, 65, 12, 2, 3, *EVERY), "chunk edge"),
    Case("two tiles", _case(1, 1087, 8, 3, 4, *EVERY, radius=(0.99, 0.9999)), "states cross tiles; a short last chunk"),
    Case("one tap", _case(2, 20, 4, 4, 1, *EVERY), "an empty state of the short filter"),
    Case("eight taps", _case(2, 20, 3, 4, 8, *EVERY), "the most"),
    Case("one mode", _case(2, 20, 5, 1, 3, *EVERY), "an odd number of modes"),
    Case("ten modes", _case(2, 40, 10, 10, 3, *EVERY), "a second group of 8 in the kernels, filled up"),
    Case("no modes", _case(2, 20, 5, 0, 3, *EVERY), "S = 0: only the skip"),
    Case("no rows", _case(0, 20, 5, 4, 3, *EVERY), "zero-size batch"),
    Case("no samples", _case(2, 0, 5, 4, 3, *EVERY), "zero-size: the states pass through"),
    Case("empty slices", _empty_slices, "no modes and one tap, cut off what has some: strides that no size explains"),
    Case("unstable", _case(1, 20, 3, 4, 3, *EVERY, radius=(1.0, 1.05)), "|p| > 1 is legal"),
    Case("zero poles", _zero_poles, "nothing is remembered"),
    Case("non-contiguous", _strided, "every tensor strided, residues lazily conjugated"),
    Case("float32 parameters", _float32_parameters, "mixed dtypes"),
    Case("Evo-1 8k", _case(1, 8192, 4096, 8, 3, *EVERY, groups=32), "one layer of Evo-1", bench=True),
)

OP = Op(
    "hyena_mixer",
    hyena_mixer,
    "(Tensor z, Tensor weight, Tensor? bias, Tensor poles, Tensor residues, Tensor? skip, Tensor? fir_state, "
    "Tensor? initial_state, int groups, bool output_final_state) -> (Tensor, Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    values=values,
    supports=supports,
)
