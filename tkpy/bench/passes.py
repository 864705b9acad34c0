"""What of an op a row runs: the forward, the backward alone (of a forward that ran before), or one after the other.

The leaves are the floating and complex tensors among the arguments; cotangents are standard normal, the same for every
candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

PASSES = ("forward", "backward", "forward+backward")

Kwargs = dict[str, Any]


def outputs_of(result: Any) -> list[torch.Tensor]:
    """The tensors that an op returned, those that are None left out."""
    flat = result if isinstance(result, tuple) else (result,)
    return [t for t in flat if t is not None]


def with_leaves(kwargs: Kwargs) -> Kwargs:
    """The same arguments, gradients wanted of all that are floating or complex tensors."""
    wanted = {k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor) and _differentiable(v)}
    return kwargs | {name: tensor.detach().requires_grad_() for name, tensor in wanted.items()}


def _differentiable(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def leaves_of(kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Those of `with_leaves`, in the order of the arguments."""
    return [v for v in kwargs.values() if isinstance(v, torch.Tensor) and v.requires_grad]


def cotangents(outputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Of each output, rounded to the dtype under test, in the output's own."""
    found = []
    for output in outputs:
        generator = torch.Generator(output.device).manual_seed(1)
        drawn = torch.randn(output.shape, generator=generator, device=output.device)
        found.append(drawn.to(dtype).to(output.dtype))
    return found


def part(call: Callable[[], Any], kwargs: Kwargs, which: str, dtype: torch.dtype) -> Callable[[], Any]:
    """`call()`, or the gradients of its outputs: alone, its forward having run once, or both each time."""
    if which == "forward":
        return call
    leaves = leaves_of(kwargs)
    kept: list[torch.Tensor] = []  # of the first run: outputs, for the backward alone
    grads: list[torch.Tensor] = []

    def forward() -> list[torch.Tensor]:
        with torch.enable_grad():
            return [t for t in outputs_of(call()) if t.requires_grad]

    def run() -> tuple[torch.Tensor, ...]:
        outputs = kept or forward()
        if not grads:
            grads.extend(cotangents(outputs, dtype))
        if which == "backward":
            kept[:] = outputs
        found = torch.autograd.grad(outputs, leaves, grads, retain_graph=True, allow_unused=True)
        return tuple(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True))

    return run
