"""Transforms of functions (torch.func, forward-mode derivatives) that PyTorch has no rule for where a custom op is in
them: the first would be silently wrong, the others say so in words that name neither op nor way out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._C import _functorch as functorch
from torch.autograd import forward_ad

from tkpy.errors import Refusal


def active() -> bool:
    """Whether there is anything to look for in the arguments of a call."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def refusal(args: Sequence[Any]) -> Refusal | None:
    """Why a call of these arguments cannot be transformed as it is about to be; None if it can."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):  # PyTorch would give a tangent of zeros
        return Refusal("no_forward_mode", "needs reverse mode: it has no forward-mode derivative (jvp, jacfwd)")
    layers = [layer for t in tensors for layer in _layers(t)]
    if torch.is_grad_enabled() and any(functorch.is_gradtrackingtensor(t) and t.requires_grad for t in layers):
        needed = "needs requires_grad and torch.autograd for its gradient"
        return Refusal("no_functional_gradient", f"{needed}, got torch.func (grad, vjp, jacrev)")
    lists = any(isinstance(a, (list, tuple)) for a in args)
    if any(functorch.is_batchedtensor(t) for t in layers) and lists:
        return Refusal("no_vmap", "needs its batch in a dimension of its own, got torch.vmap over a call with lists")
    return None


def _layers(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """What torch.func has wrapped a tensor in, the innermost transform first."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        yield tensor
        tensor = functorch.get_unwrapped(tensor)
