"""modal_conv: gated long convolution with filters that are sums of complex exponentials, h_t = Re sum_s R_s p_s^t.

The modal form of a diagonal state space (Massaroli et al. 2023, "Laughing Hyena Distillery", section 3), as the filters
of StripedHyena and Evo have it (Nguyen et al. 2024, "Sequence modeling and design from molecular to genome scale with
Evo").
"""

from __future__ import annotations

import math

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.errors import Refusal
from tkpy.registry import Call, Case, Op

COMPLEX = (torch.complex64, torch.complex128)


def modal_conv(
    u: torch.Tensor,
    poles: torch.Tensor,
    residues: torch.Tensor,
    skip: torch.Tensor | None = None,
    *,
    pre_gate: torch.Tensor | None = None,
    post_gate: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal depthwise convolution whose filter is a sum of S complex modes, in parallel form with an exact state.

    With v = pre_gate * u, per batch element and channel,

        x_t = p x_{t-1} + v_t                          S complex states, x_{-1} = initial_state
        y_t = post_gate * (Re sum_s R_s x_{t,s} + skip v_t)

    which from a zero state is y = post_gate * (conv(h, v) + skip v) with h_t = Re sum_s R_s p_s^t (and 0^0 = 1). Only
    the real part is read, so modes need not come in conjugate pairs. A long sequence may be fed in pieces of any
    length, with the state carried; a piece of length 1 is one step of the recurrence. No (H, S, L) tensor is ever made.

    Args:
        u: (B, H, L), float32, bfloat16 or float16; any L.
        poles: (H, S) complex64, finite. 0 is legal, and so is |p| > 1 while |p|^L stays inside float32's range.
        residues: (H, S) complex64.
        skip: (H,), real, any dtype that u may have.
        pre_gate, post_gate: (B, H, L), of u's dtype.
        initial_state: (B, H, S) complex64; None is zero.
        output_final_state: also return x after the last input.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        y (B, H, L) in u's dtype, and the final state (B, H, S) complex64 (complex128 for float64 u) or None. States
        and sums are float32, powers of the poles are formed in float64. Gradients follow torch's convention for complex
        tensors, and flow from the state and into the initial one.

    Under `torch.autocast`, u and the gates are cast to the autocast dtype; poles and residues never are.

    Raises:
        TypeError, ValueError: malformed arguments; a pole that is infinite or NaN.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("modal_conv")
    check.tensor("u", u, "B H L")
    check.tensor("poles", poles, "H S", dtypes=COMPLEX)
    check.tensor("residues", residues, "H S", dtypes=COMPLEX)
    check.tensor("skip", skip, "H", optional=True)
    check.tensor("pre_gate", pre_gate, "B H L", optional=True)
    check.tensor("post_gate", post_gate, "B H L", optional=True)
    check.tensor("initial_state", initial_state, "B H S", dtypes=COMPLEX, optional=True)
    check.same_device()
    check.same_dtype("poles", "residues")
    check.flag("output_final_state", output_final_state)
    u, pre_gate, post_gate = autocast(u, pre_gate, post_gate)
    check.tensors.update(
        {n: t for n, t in (("u", u), ("pre_gate", pre_gate), ("post_gate", post_gate)) if t is not None}
    )
    check.same_dtype("u", "pre_gate", "post_gate")
    # A lazy conjugate does not survive torch.compile's tracing of custom ops.
    poles, residues = poles.resolve_conj(), residues.resolve_conj()
    initial_state = None if initial_state is None else initial_state.resolve_conj()
    y, state = OP(u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state, backend=backend)
    return y, state if output_final_state else None


def fake(u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state):
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    shape = (u.shape[0], *poles.shape) if output_final_state else (0,)
    return u.new_empty(u.shape), u.new_empty(shape, dtype=dtype)


def values(u, poles, *others) -> None:
    """Poles are finite. Not looked at while a CUDA graph is captured, which allows no synchronisation."""
    if poles.numel() == 0 or (poles.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    largest = torch.linalg.vector_norm(torch.view_as_real(poles.detach()), math.inf).item()
    Arguments("modal_conv").that(math.isfinite(largest), "poles", "finite", largest)


def flops(call: Call) -> int:
    """The recurrence: per sample and mode a complex multiply-add and the real part of a product."""
    batch, channels, length = call["u"].shape
    return batch * channels * length * (12 * call["poles"].shape[1] + 2)


def nbytes(call: Call) -> int:
    state = 8 * call["u"].shape[0] * call["poles"].numel() if call["output_final_state"] else 0
    return sum(t.numel() * t.element_size() for t in (*call.tensors, call["u"])) + state


#: Most modes a channel of the compiled kernels, and sizes that they count in 32 bits.
KERNEL_MODES, KERNEL_SIZE = 32, 2**29


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator"):
        return []
    u, poles, reasons = call["u"], call["poles"], list[Refusal]()
    if backend == "emulator" and (u.dtype == torch.float64 or poles.dtype != torch.complex64):
        got = f"{u.dtype} and {poles.dtype}".replace("torch.", "")
        reasons.append(Refusal("dtype", f"needs float32, float16 or bfloat16 and complex64 poles, got {got}"))
    if poles.shape[1] > KERNEL_MODES:
        reasons.append(Refusal("modes", f"needs at most {KERNEL_MODES} modes a channel, got {poles.shape[1]}"))
    if max(u.shape) >= KERNEL_SIZE:
        reasons.append(Refusal("size", f"needs sizes below 2^29, got {tuple(u.shape)}"))
    return reasons


def _modes(m, channels, modes, radius=(0.3, 0.995)):
    """Poles of radius within `radius` at any phase, and residues."""
    size = m.uniform(*radius, channels, modes, dtype=m.wide)
    poles = torch.polar(size, m.uniform(0, 2 * math.pi, channels, modes, dtype=m.wide))
    return poles, torch.complex(*(m.randn(channels, modes, scale=0.5, dtype=m.wide) for _ in range(2)))


def _case(batch, channels, modes, length, *options, radius=(0.3, 0.995), scale=1.0):
    def make(m):
        poles, residues = _modes(m, channels, modes, radius)
        kwargs = {"u": m.randn(batch, channels, length, scale=scale), "poles": poles, "residues": residues}
        if "skip" in options:
            kwargs["skip"] = m.randn(channels, dtype=m.wide)
        for gate in ("pre_gate", "post_gate"):
            if gate in options or "gates" in options:
                kwargs[gate] = m.randn(batch, channels, length)
        if "initial" in options:
            shape = (batch, channels, modes)
            kwargs["initial_state"] = torch.complex(m.randn(*shape, dtype=m.wide), m.randn(*shape, dtype=m.wide))
        if "final" in options:
            kwargs["output_final_state"] = True
        return kwargs

    return make


def _strided(m):
    poles, residues = _modes(m, 8, 3)
    return {
        "u": m.randn(70, 2, 4).permute(1, 2, 0),
        "poles": poles[::2],
        "residues": residues[1::2].conj(),
        "skip": m.randn(8, dtype=m.wide)[::2],
        "pre_gate": m.randn(2, 70, 4).transpose(1, 2),
        "post_gate": m.randn(1, 4, 1).expand(2, 4, 70),
        "initial_state": torch.complex(m.randn(3, 4, 2, dtype=m.wide), m.randn(3, 4, 2, dtype=m.wide)).permute(2, 1, 0),
        "output_final_state": True,
    }


def _zero_poles(m):
    return _case(2, 2, 3, 70, "skip", "initial", "final")(m) | {"poles": torch.zeros(2, 3, dtype=m.wide.to_complex())}


ALL = ("skip", "gates", "initial", "final")

CASES = (
    Case("small", _case(2, 3, 4, 100, *ALL), "the plain call with every option: one chunk and a tail"),
    Case("no options", _case(2, 3, 2, 33), "only u, poles, residues; no state asked for"),
    Case("length 1", _case(3, 2, 8, 1, *ALL), "the decoding step"),
    Case("length 1 from zero", _case(1, 2, 2, 1, "final"), "the decoding step without a state"),
    Case("length 2", _case(1, 2, 3, 2, *ALL), "shorter than a chunk"),
    Case("chunk - 1", _case(1, 2, 2, 63, *ALL), "chunk edge"),
    Case("chunk", _case(1, 2, 2, 64, *ALL), "chunk edge"),
    Case("chunk + 1", _case(1, 2, 2, 65, *ALL), "chunk edge: a tail of one sample"),
    Case("prime length", _case(2, 2, 8, 281, *ALL, radius=(0.9, 0.9999)), "several chunks, slow poles"),
    Case("two tiles", _case(1, 2, 3, 2131, *ALL, radius=(0.99, 0.9999)), "states cross tiles of chunks; every tail"),
    Case("unstable", _case(1, 2, 2, 90, "skip", "final", radius=(1.0, 1.05)), "|p| > 1 is legal"),
    Case("zero poles", _zero_poles, "0^0 = 1: the filter is Re sum R at lag 0 and nothing else"),
    Case("no modes", _case(1, 2, 0, 40, *ALL), "S = 0: only the skip"),
    Case("no batch", _case(0, 3, 4, 40, *ALL), "zero-size"),
    Case("no samples", _case(2, 3, 4, 0, *ALL), "zero-size: the state passes through"),
    Case("strided", _strided, "every tensor non-contiguous, residues lazily conjugated, one gate expanded"),
    Case("large values", _case(1, 2, 3, 70, "skip", scale=300.0), "extreme magnitudes"),
    Case("tiny values", _case(1, 2, 3, 70, "skip", "final", scale=1e-3), "extreme magnitudes"),
    Case("Evo-1 8k", _case(1, 4096, 8, 8192, "skip", "gates", "final"), "one layer of Evo-1", bench=True),
    Case("128k x 256", _case(1, 256, 8, 131072, "skip", "gates", "final"), "long context", bench=True),
)

OP = Op(
    "modal_conv",
    modal_conv,
    "(Tensor u, Tensor poles, Tensor residues, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, "
    "Tensor? initial_state, bool output_final_state) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    values=values,
    supports=supports,
)
