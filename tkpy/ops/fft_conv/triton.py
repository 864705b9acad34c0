"""fft_conv in Triton, for any GPU since sm_80, data in float32, bfloat16 or float16; triton_kernels.py has the kernels.

Rows of up to 2048 samples, whose circles have twice as many, are held by one program from gates to gates; longer ones
go through an outer factor and `work` in global memory, 8 bytes a point. The spectrum of the filters is kept from call
to call (spectra.py); gradients.py has the backward. The order of all sums follows from shapes: same call, same bits.

shapes     u, gates, dy (B, H, L), filters (H, taps) of any strides; spectrum (H, N0, 2, N1, N2), work (B, H, N0, 2, M)
precision  products of 16-bit data in three bfloat16 products (2^-17 of an operand), of float32 data in three of tf32
limits     rows of at most 2^22 samples; compute capability 8.0 or newer
cost       36 (N1 + N2) flops a point, of longer rows 48 (N1 + N2) + 24 N0 and 32 bytes of work; u, gates and y once
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton

from tkpy.ops.fft_conv import eager, gradients
from tkpy.ops.fft_conv.spectra import kept
from tkpy.ops.fft_conv.tables import indices, roots_of_unity, two_terms
from tkpy.ops.fft_conv.triton_kernels import _convolve, _inner, _outer_in, _outer_out, _spectrum, _taps
from tkpy.registry import triton_interpreted

#: Factors N1, N2 of the points that one program holds, and its warps.
FACTORS = {256: (16, 16, 1), 512: (16, 32, 2), 1024: (32, 32, 4), 2048: (32, 64, 8)}
MOST_OUTER = 2048
STRIP = 64  # columns of an outer program


class Plan(NamedTuple):
    """`outer` rows of `points` that one program holds; outer 0: one such row is all."""

    outer: int
    points: int

    @property
    def total(self) -> int:
        return max(self.outer, 1) * self.points

    @property
    def rows(self) -> int:
        return max(self.outer, 1)

    def options(self, u: torch.Tensor) -> dict[str, object]:
        n1, n2, warps = FACTORS[self.points]
        return {"N1": n1, "N2": n2, "WIDE": _wide(u), "num_warps": warps}

    def outer_options(self, u: torch.Tensor) -> dict[str, object]:
        rows = min(64, triton.next_power_of_2(self.outer))
        return {"M": self.points, "BJ": rows, "BN": STRIP, "WIDE": _wide(u), "num_warps": 8 if rows == 64 else 4}

    def outer_grid(self, rows: int, u: torch.Tensor) -> tuple[int]:
        return (rows * (self.points // STRIP) * triton.cdiv(self.outer, self.outer_options(u)["BJ"]),)


def _wide(u: torch.Tensor) -> bool:
    """float32 operands: for float32 data, and in the interpreter, whose bfloat16 is wrong."""
    return u.dtype == torch.float32 or triton_interpreted()


@functools.lru_cache(maxsize=4096)
def plan_for(length: int) -> Plan:
    """One program where it holds the row. Else the cheapest: 8 outer + 16 (N1 + N2) flops a point, three times, and the
    bytes of `work`, in whose time an H100 does 1400 more of these."""
    if length <= max(FACTORS):
        return Plan(0, min(points for points in FACTORS if points >= length))
    plans = [
        Plan(outer, points) for points in FACTORS for outer in [max(16, 16 * triton.cdiv(length, 16 * points))]
        if outer <= MOST_OUTER
    ]  # fmt: skip
    return min(plans, key=lambda p: p.total * (1400 + 8 * p.outer + 16 * sum(FACTORS[p.points][:2])))


def _planes(waves: torch.Tensor, wide: bool) -> torch.Tensor:
    """Real parts and imaginary parts in float32, or their upper terms and then their lower terms in bfloat16."""
    parts = torch.stack([waves.real, waves.imag])
    return (parts.float() if wide else two_terms(parts)).flatten()


@functools.lru_cache(maxsize=64)
def _tables(points: int, shift: float, wide: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """F and S; T."""
    n1, n2, _ = FACTORS[points]
    shifted = indices(n1) + shift
    matrices = roots_of_unity(shifted, indices(n1), n1), roots_of_unity(indices(n2), indices(n2), n2)
    factors = _planes(roots_of_unity(shifted, indices(n2), points), True)
    return torch.cat([_planes(m, wide) for m in matrices]).to(device), factors.to(device)


@functools.lru_cache(maxsize=64)
def _outer_tables(outer: int, points: int, wide: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The outer matrix; its twiddle factors, of the columns in a strip and of the strips."""
    shifted = indices(outer) + 0.25
    columns, strips = indices(STRIP), STRIP * indices(points // STRIP)
    factors = torch.cat([_planes(roots_of_unity(shifted, n, outer * points), True) for n in (columns, strips)])
    return _planes(roots_of_unity(shifted, indices(outer), outer), wide).to(device), factors.to(device)


def _constants(plan: Plan, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _tables(plan.points, 0.0 if plan.outer else 0.25, _wide(u), u.device)


def _outer_constants(plan: Plan, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _outer_tables(plan.outer, plan.points, _wide(u), u.device)


def _strides(*tensors: torch.Tensor | None) -> list[int]:
    """Three a tensor: of a filter, and of nothing, with leading zeros."""
    found: list[int] = []
    for tensor in tensors:
        strides = () if tensor is None else tensor.stride()
        found += [0] * (3 - len(strides)) + list(strides)
    return found


def _to_work(plan: Plan, x, gate, back, back_taps: int, length: int, u: torch.Tensor) -> torch.Tensor:
    """(B, H, N0, 2, M) of rows, or (1, H, N0, 2, M) of taps."""
    batch, channels = (1, x.shape[0]) if x.dim() == 2 else x.shape[:2]
    work = torch.empty(batch, channels, plan.outer, 2, plan.points, dtype=torch.float32, device=u.device)
    _outer_in[plan.outer_grid(batch * channels, u)](
        x, gate, back, work, *_outer_constants(plan, u), *_strides(x, gate), *_strides(back)[1:],
        batch, channels, length, back_taps, plan.outer, **plan.outer_options(u),
    )  # fmt: skip
    return work


def _make_spectrum(u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None) -> torch.Tensor:
    """(H, rows, 2, N1, N2)."""
    plan, (ahead, back) = plan_for(u.shape[-1]), gradients.reach(u, k, k_reverse)
    n1, n2, _ = FACTORS[plan.points]
    spectrum = torch.empty(k.shape[0], plan.rows, 2, n1, n2, dtype=torch.float32, device=u.device)
    reverse = k_reverse if back else None
    work = _to_work(plan, k, None, reverse, back, ahead, u) if plan.outer else None
    _spectrum[(k.shape[0] * plan.rows,)](
        k, reverse, work, spectrum, *_constants(plan, u), *_strides(k)[1:], *_strides(reverse)[1:], ahead, back,
        1 / plan.total, LONG=plan.outer > 0, **plan.options(u),
    )  # fmt: skip
    return spectrum


def _spectrum_of(u: torch.Tensor, k: torch.Tensor, k_reverse: torch.Tensor | None) -> torch.Tensor:
    filters = [k] if k_reverse is None else [k, k_reverse]
    key = ("triton", plan_for(u.shape[-1]), gradients.reach(u, k, k_reverse), _wide(u))
    return kept(filters, key, lambda: _make_spectrum(u, k, k_reverse))


def _run(u, pre, post, skip, spectrum, *, correlate=False, post2=None, wanted=(True, False)):
    outs = [torch.empty(u.shape, dtype=u.dtype, device=u.device) if want else None for want in wanted]
    gates = [post, post2 if wanted[1] else None]
    if not wanted[0]:
        outs.reverse()
        gates = [post2, None]
    batch, channels, length = u.shape
    plan, sign = plan_for(length), -1.0 if correlate else 1.0
    skip = None if skip is None else skip.contiguous()
    tables, strides = _constants(plan, u), _strides(u, pre, *gates)
    if plan.outer:
        work = _to_work(plan, u, pre, None, 0, length, u)
        _inner[(batch * channels * plan.outer,)](
            work, spectrum, *tables, sign, batch, channels, plan.outer, **plan.options(u)
        )
        _outer_out[plan.outer_grid(batch * channels, u)](
            work, *_outer_constants(plan, u), u, pre, *gates, *outs, skip, None, None, *strides,
            batch, channels, length, 0, 0, plan.outer, TAPS=False, **plan.outer_options(u),
        )  # fmt: skip
    else:
        _convolve[(batch * channels,)](
            u, pre, *gates, *outs, skip, spectrum, *tables, *strides, sign, batch, channels, length, **plan.options(u)
        )
    return outs if wanted[0] else outs[::-1]


def forward(u, k, k_reverse, skip, pre_gate, post_gate):
    if u.numel() == 0:
        return u.new_empty(u.shape)
    return _run(u, pre_gate, post_gate, skip, _spectrum_of(u, k, k_reverse))[0]


def _filters(u, pre, dy, post, used, used_reverse):
    batch, channels, length = u.shape
    plan = plan_for(length)
    shares = gradients.shares_for(batch, channels * plan.rows, 2 * gradients.multiprocessors(u.device))

    def floats(*shape):
        return torch.empty(shares, *shape, dtype=torch.float32, device=u.device)

    def sums(works, dk, dk_reverse, summed):
        """One launch of _taps: of rows, or of work."""
        rows = channels if summed is None else summed.shape[1] * plan.outer
        _taps[(rows, shares)](
            u, pre, dy, post, *works, dk, dk_reverse, summed, *_constants(plan, u), *_strides(u, pre, dy, post),
            1 / plan.total, batch, rows, length, triton.cdiv(batch, shares), used, used_reverse,
            LONG=plan.outer > 0, **plan.options(u),
        )  # fmt: skip

    if not plan.outer:
        dk, dk_reverse = floats(channels, used), floats(channels, used_reverse)
        sums((None, None), dk, dk_reverse, None)
        return dk.sum(0), dk_reverse.sum(0)
    dk, dk_reverse = (u.new_empty(channels, n, dtype=torch.float32) for n in (used, used_reverse))
    step = max(1, eager.BLOCK_ELSEWHERE // (batch * plan.total))  # of channels whose work is there at the same time
    for block in (slice(start, start + step) for start in range(0, channels, step)):
        pairs = [(x[:, block], None if gate is None else gate[:, block]) for x, gate in ((u, pre), (dy, post))]
        works = [_to_work(plan, x, gate, None, 0, length, u) for x, gate in pairs]
        summed = floats(works[0].shape[1], plan.outer, 2, plan.points)
        sums(works, None, None, summed)
        summed = summed.sum(0, keepdim=True)
        _outer_out[plan.outer_grid(summed.shape[1], u)](
            summed, *_outer_constants(plan, u), u, None, None, None, None, None, None,
            dk[block], dk_reverse[block], *_strides(u, None, None, None),
            1, summed.shape[1], length, used, used_reverse, plan.outer, TAPS=True, **plan.outer_options(u),
        )  # fmt: skip
    return dk, dk_reverse


def _everything(values, u, pre, dy, post, skip, wanted, used, used_reverse):
    rows = gradients.of_rows(_run, values, u, pre, dy, post, skip, wanted)
    return (*rows, *_filters(u, pre, dy, post, used, used_reverse))


def backward(grads, outputs, u, k, k_reverse, skip, pre_gate, post_gate, *, needs):
    (dy,) = grads
    if dy is None or u.numel() == 0:
        return [None] * 6
    spectrum = functools.partial(_spectrum_of, u, k, k_reverse)
    return gradients.backward(
        spectrum, _run, _everything, dy, u, k, k_reverse, skip, pre_gate, post_gate, needs
    )  # fmt: skip


def _named(names: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


_TYPES = (
    _named("u_ptr pre_ptr post_ptr post2_ptr out_ptr out2_ptr dy_ptr x_ptr gate_ptr matrix_ptr", "*bf16")
    | _named("skip_ptr spectrum_ptr table_ptr turn_ptr k_ptr k_reverse_ptr dk_ptr dk_reverse_ptr", "*fp32")
    | _named("work_ptr v_work_ptr g_work_ptr out_work_ptr", "*fp32")
    | _named("k_h k_t r_h r_t", "i64")
    | dict.fromkeys([f"{x}_{d}" for x in ("u", "pre", "post", "post2", "dy", "x", "g") for d in "bht"], "i64")
    | _named("B H L N0 each ahead back", "i32")
    | _named("sign scale", "fp32")
)
_WHOLE = {"N1": 32, "N2": 32, "WIDE": False}
_OUTER = {"M": 2048, "BJ": 64, "BN": STRIP, "WIDE": False}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_convolve, _TYPES, _WHOLE),
    (_spectrum, _TYPES, _WHOLE | {"LONG": False, "work_ptr": None}),
    (
        _taps,
        _TYPES,
        _WHOLE | {"LONG": False} | dict.fromkeys(("v_work_ptr", "g_work_ptr", "out_work_ptr")),
    ),
    (_inner, _TYPES, _WHOLE),
    (_outer_in, _TYPES, _OUTER | {"back_ptr": None}),
    (_outer_out, _TYPES, _OUTER | {"TAPS": False} | dict.fromkeys(("dk_ptr", "dk_reverse_ptr"))),
)
