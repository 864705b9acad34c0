"""Runs an op's cases on a backend and compares outputs and gradients with the float64 reference.

Used by the tests, by `tkpy check` and by `tkpy demo`: the same table, the same comparison.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tkpy import registry
from tkpy.errors import InternalError
from tkpy.numerics import TOLERANCE, Comparison, compare
from tkpy.registry import Case, Maker, Op


@dataclass(frozen=True)
class Result:
    """One comparison: `what` is `output 0`, `grad x`, ...; `seconds` the time of the forward that made it."""

    op: str
    case: str
    backend: str
    dtype: torch.dtype
    what: str
    comparison: Comparison
    seconds: float

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op} [{self.case}] {self.backend} {dtype} {self.what}: {self.comparison}"


def map_tensors(value: Any, function: Any) -> Any:
    """Apply `function` to every tensor in `value`: a tensor, a list, tuple or dict, or an object with `map_tensors`."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, function) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, function) for v in value)
    if hasattr(value, "map_tensors"):
        return value.map_tensors(function)
    return value


def widen(value: Any) -> Any:
    """Floating tensors as float64 and complex ones as complex128, with the values they have now."""

    def wide(t: torch.Tensor) -> torch.Tensor:
        t = t.detach()
        return t.to(torch.complex128) if t.is_complex() else t.double() if t.is_floating_point() else t

    return map_tensors(value, wide)


def _outputs(result: Any) -> list[torch.Tensor]:
    flat = result if isinstance(result, tuple) else (result,)
    return [t for t in flat if t is not None]


def _differentiable(kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: t
        for name, t in kwargs.items()
        if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())
    }


def _cotangents(outputs: list[torch.Tensor], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    result = []
    for t in outputs:
        dtype = torch.complex128 if t.is_complex() else torch.float64
        g = torch.randn(t.shape, generator=generator, dtype=dtype)
        # An output of -inf (an empty row's log-sum-exp) is constant: it gets no cotangent.
        finite = torch.isfinite(t.detach().cpu())
        result.append(torch.where(finite, g, torch.zeros_like(g)).to(t.device))
    return result


def _run(
    op: Op, kwargs: dict[str, Any], backend: str, grad: bool
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], float]:
    leaves = _differentiable(kwargs) if grad else {}
    kwargs = dict(kwargs)
    for name, tensor in leaves.items():
        kwargs[name] = leaves[name] = tensor.detach().requires_grad_(True)
    start = time.perf_counter()
    outputs = _outputs(op.public(**kwargs, backend=backend))
    if outputs and outputs[0].device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    dispatch = registry.last_dispatch()
    if dispatch is None or (dispatch.op, dispatch.backend) != (op.name, backend):
        raise InternalError(f"asked {op.name} of {backend}, but {dispatch} ran")
    grads: dict[str, torch.Tensor] = {}
    differentiable = [(o, g) for o, g in zip(outputs, _cotangents(outputs), strict=True) if o.requires_grad]
    if leaves and differentiable:
        found = torch.autograd.grad(
            [o for o, _ in differentiable],
            list(leaves.values()),
            [g.to(o.dtype) for o, g in differentiable],
            allow_unused=True,
        )
        grads = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found, strict=True)
        }
    return outputs, grads, seconds


def check_case(
    op: Op | str,
    case: Case,
    *,
    backend: str = "eager",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    grad: bool | None = None,
    seed: int = 0,
) -> Iterator[Result]:
    """Run one case on `backend` and yield a `Result` per output and per gradient, each against float64.

    The cotangents are random in every output, rounded to its dtype; `torch.randn` inputs are rounded to `dtype` once
    and both sides see the rounded values. `grad`: whether gradients too; None is as the case says, and no for a backend
    that has no backward. Raises `tkpy.Unsupported` if the backend refuses the case.
    """
    op = registry.get(op) if isinstance(op, str) else op
    if grad is None:
        grad = case.grad and op.differentiates(backend)
    kwargs = case.make(Maker(dtype, device, seed))
    outputs, grads, seconds = _run(op, kwargs, backend, grad)
    expected, expected_grads, _ = _run(op, widen(kwargs), "reference", grad)
    tol = TOLERANCE[dtype] * case.tol
    if len(outputs) != len(expected):
        raise InternalError(f"{op.name}: {len(outputs)} outputs from {backend}, {len(expected)} from reference")
    for i, (a, b) in enumerate(zip(outputs, expected, strict=True)):
        yield Result(op.name, case.name, backend, dtype, f"output {i}", compare(a, b, tol), seconds)
    for name in grads:
        comparison = compare(grads[name], expected_grads[name], tol)
        yield Result(op.name, case.name, backend, dtype, f"grad {name}", comparison, seconds)
