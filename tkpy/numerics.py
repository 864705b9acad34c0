"""Scale-free, NaN-proof comparison: the one way in which tkpy says that two results agree.

A result agrees with its reference (computed in float64 on the same inputs) if

1. its shape is the reference's, it holds no NaN, and it is infinite exactly where the reference is, with its sign;
2. `norm(a - b) <= tol * norm(b)` over the finite entries;
3. every `|a - b| <= PEAK * tol * (rms(b) + |b|)`, so that a few entries cannot hide in the norm.

Each inequality is written so that a NaN fails it. Zeros, NaN, one stale row, or the previous case's output fail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Relative error that one op may make, by the dtype of its inputs.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
    torch.float8_e4m3fn: 4e-2,  # of weights that are rounded to it: 2.6 % of the norm; inputs are taken as they are
}

#: How far a single entry may lie outside `tol`, against the rms of the reference and its own size.
PEAK = 16.0


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare`: truthy when the results agree. `relative` is the norm ratio, `peak` the worst entry."""

    ok: bool
    relative: float
    peak: float
    tolerance: float
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        verdict = "agrees" if self.ok else f"DIFFERS ({self.reason})"
        return f"{verdict}: relative error {self.relative:.2e}, worst entry {self.peak:.2e}, tol {self.tolerance:.1e}"


def _wide(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x.to(device=device, dtype=torch.float64)


def compare(actual: torch.Tensor, expected: torch.Tensor, tol: float) -> Comparison:
    """Compare `actual` with `expected` (any dtype, complex too) at relative tolerance `tol`."""

    def fail(reason: str, relative: float = float("nan"), peak: float = float("nan")) -> Comparison:
        return Comparison(False, relative, peak, tol, reason)

    if actual.shape != expected.shape:
        return fail(f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    # On the device where both are, if it knows float64: results of benchmarks have hundreds of millions of entries.
    there = actual.device == expected.device and actual.device.type == "cuda"
    device = actual.device if there else torch.device("cpu")
    a, b = _wide(actual, device), _wide(expected, device)
    if bool(torch.isnan(b).any()):
        return fail("the reference itself holds NaN")
    if bool(torch.isnan(a).any()):
        return fail("NaN")
    infinite = torch.isinf(b)
    if not torch.equal(torch.isinf(a), infinite) or not torch.equal(a[infinite], b[infinite]):
        return fail("infinite where the reference is not, or the reverse")
    a, b = a[~infinite], b[~infinite]
    if b.numel() == 0:
        return Comparison(True, 0.0, 0.0, tol)
    error, norm = torch.linalg.vector_norm(a - b).item(), torch.linalg.vector_norm(b).item()
    relative = error / norm if norm > 0 else (0.0 if error == 0 else float("inf"))
    scale = norm / b.numel() ** 0.5 + b.abs()
    peak = ((a - b).abs() / scale).nan_to_num(nan=0.0).max().item()  # 0/0: equal zeros in an all-zero reference
    if not relative <= tol:
        return fail("norm", relative, peak)
    if not peak <= PEAK * tol:
        return fail("single entries", relative, peak)
    return Comparison(True, relative, peak, tol)
