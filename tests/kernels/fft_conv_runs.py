"""fft_conv's kernels on a machine of the test's choice, against eager PyTorch in float64 on the same values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tkpy import numerics, registry

OP = registry.get("fft_conv")
EVERYTHING = ("reverse", "skip", "gates")
SUMS = 4e-5  # of float32 results: the filters' gradients
SKIP = 1e-3  # one lag of those: a channel's may be small beside the others


def inputs(batch, channels, length, *options, taps=None, reverse=None, dtype=torch.bfloat16, seed=0):
    """Options: reverse, skip, gates. Filters are float32, as long as the row unless given."""
    make = registry.Maker(dtype, seed=seed)
    kwargs = {
        "u": make.randn(batch, channels, length),
        "k": make.randn(channels, length if taps is None else taps, dtype=torch.float32),
    }
    if "reverse" in options:
        kwargs["k_reverse"] = make.randn(channels, length - 1 if reverse is None else reverse, dtype=torch.float32)
    if "skip" in options:
        kwargs["skip"] = make.randn(channels, dtype=torch.float32)
    for gate in ("pre_gate", "post_gate"):
        if "gates" in options or gate in options:
            kwargs[gate] = make.randn(batch, channels, length)
    return kwargs


def results(kwargs, backend: str, dy: torch.Tensor, grad: bool | Sequence[str] = True) -> dict[str, torch.Tensor]:
    """y, and the gradients of all arguments, of none, or of those named."""
    wanted = tuple(kwargs) if grad is True else tuple(grad or ())
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in kwargs.items()}
    y = OP.public(**leaves, backend=backend)
    found = torch.autograd.grad(y, [leaves[name] for name in wanted], dy.to(y)) if wanted else ()
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(wanted, found, strict=True)}}


def excess(got: torch.Tensor, want: torch.Tensor, sums: float = SUMS) -> str:
    """Empty if `got` is off by little more than `want` (float64) rounded to its dtype: what one rounding costs."""
    rounding = (want.to(got.dtype).double() - want).norm() / want.norm().clamp(min=1e-300)
    bound = float(1.02 * rounding + sums)
    comparison = numerics.compare(got, want, bound)
    return "" if comparison else f"{comparison} (rounding costs {float(rounding):.2e})"


def disagreement(kwargs, backend: str = "emulator", grad: bool | Sequence[str] = True) -> str:
    """Empty if y and the gradients of `results` are as good as their dtypes allow."""
    dy = torch.randn(kwargs["u"].shape, generator=torch.Generator().manual_seed(1)).to(kwargs["u"])
    got = results(kwargs, backend, dy, grad)
    want = results({name: t.double() for name, t in kwargs.items()}, "eager", dy.double(), grad)
    for name, tensor in got.items():
        if found := excess(tensor, want[name], SKIP if name == "dskip" else SUMS):
            return f"{name}: {found}"
    return ""
