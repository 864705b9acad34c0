"""Layers that every architecture here shares: linear, norms, the gated MLP, and the per-head output edit."""

from __future__ import annotations

from typing import Any, Protocol

import torch

import tkpy


class LinearClass(Protocol):
    """Anything that builds a linear layer: `tkpy.nn.Linear`, `torch.nn.Linear`, a quantised or LoRA layer.

    Architectures take `linear_cls` and call only `layer(x)`, so a technique such as QLoRA can swap every projection.
    """

    def __call__(self, in_features: int, out_features: int, bias: bool = True) -> torch.nn.Module: ...


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` (same parameters, same initialisation) on `tkpy.linear`: (..., in) -> (..., out)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tkpy.linear(x, self.weight, self.bias)


def bare(*layers: torch.nn.Module, kind: type[torch.nn.Module] = Linear) -> bool:
    """Whether these layers are their products and nothing else: exactly of this class, with nobody's hooks or forward.

    Only then may an op do what they do; a quantised or adapted layer, or one that somebody watches, is called.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(
        type(layer) is kind and "forward" not in layer.__dict__ and not any(getattr(layer, name) for name in hooks)
        for layer in layers
    )


class RMSNorm(torch.nn.Module):
    """`tkpy.rms_norm` with its weight, named `scale` as in StripedHyena: (..., width) -> (..., width)."""

    def __init__(self, width: int, eps: float = 1e-6, *, eps_inside_sqrt: bool = True):
        super().__init__()
        self.eps, self.eps_inside_sqrt = eps, eps_inside_sqrt
        self.scale = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tkpy.rms_norm(x, self.scale, self.eps, eps_inside_sqrt=self.eps_inside_sqrt)


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dimension (same parameters) on `tkpy.layer_norm`."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__(width, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tkpy.layer_norm(x, self.weight, self.bias, self.eps)


class GatedMLP(torch.nn.Module):
    """l3(act(l1 x) * (l2 x)), without biases (SwiGLU for "silu"; Shazeer 2020, "GLU Variants Improve Transformer").

    Args:
        width: of input and output.
        inner: of the gate.
        activation: "silu" or "gelu" (exact, erf).
        linear_cls: builds the three projections.
        recompute: keep nothing of the inner width for the backward, which computes both inner products again; for
            layers that `tkpy.gated_mlp` takes as one, as it does unless they are hooked, replaced or subclassed.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        activation: str = "silu",
        *,
        linear_cls: LinearClass = Linear,
        recompute: bool = False,
    ):
        super().__init__()
        activations: dict[str, Any] = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}
        if activation not in activations:
            raise ValueError(f"GatedMLP: activation must be 'silu' or 'gelu', got {activation!r}")
        self.activation, self.act, self.recompute = activation, activations[activation], recompute
        self.l1 = linear_cls(width, inner, bias=False)
        self.l2 = linear_cls(width, inner, bias=False)
        self.l3 = linear_cls(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bare(self.l1, self.l2, self.l3):
            weights = self.l1.weight, self.l2.weight, self.l3.weight
            return tkpy.gated_mlp(x, *weights, activation=self.activation, recompute=self.recompute)
        return self.l3(self.act(self.l1(x)) * self.l2(x))


class HeadEdit(torch.nn.Module):
    """z = (1 + scale) * z + bias on each head's output, before the output projection (LoFiT, arXiv 2406.01563).

    The identity, without parameters or state-dict names, until `enable` is called; so checkpoints stay as they are.
    Head pruning and activation steering drive the same place.
    """

    scale: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.register_parameter("scale", None)
        self.register_parameter("bias", None)

    def enable(self, *, scale: bool = True, bias: bool = True, like: torch.Tensor | None = None) -> HeadEdit:
        """Create zero `scale` and/or `bias`, each (heads, head_dim), with the dtype and device of `like`."""
        options: dict[str, Any] = {} if like is None else {"dtype": like.dtype, "device": like.device}
        for name, wanted in (("scale", scale), ("bias", bias)):
            parameter = torch.nn.Parameter(torch.zeros(self.heads, self.head_dim, **options)) if wanted else None
            setattr(self, name, parameter)
        return self

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z: (..., heads, head_dim)."""
        if self.scale is not None:
            z = z * (1 + self.scale.to(z.dtype))
        if self.bias is not None:
            z = z + self.bias.to(z.dtype)
        return z
