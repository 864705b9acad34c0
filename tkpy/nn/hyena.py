"""The Hyena mixer with modal filters, as in StripedHyena and Evo 1: projections, short filter, gates, long filter.

    z = projections(x)                                      (B, T, 3 width)
    x2, x1, v = split(short_conv(z))                        causal, a few taps a channel
    y = x2 * (h * (x1 v) + D x1 v)                          h_t = Re sum_s R_s p_s^t, as of tkpy.modal_conv
    out = out_filter_dense(y)

What lies between the projections is one op, tkpy.hyena_mixer, and for a single token tkpy.hyena_step. A sequence may
come in pieces of any length; what is carried is of fixed size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Self

import torch

import tkpy
from tkpy.nn.common import HeadEdit, Linear, LinearClass


class _Inside(torch.autograd.Function):
    """Complex numbers outside a circle drawn back onto it along their radius.

    The gradient of one outside passes as if it were inside, except the part by which a descent step would push it
    farther out: so it neither drifts away nor stays out for ever, as it would if the radius had no gradient.
    """

    @staticmethod
    def forward(p: torch.Tensor, radius: float) -> torch.Tensor:
        return torch.where(p.abs() > radius, radius * p.sgn(), p)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        p, ctx.radius = inputs
        ctx.save_for_backward(p)

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        along = (grad * p.sgn().conj_physical()).real
        outward = (p.abs() > ctx.radius) & (along < 0)
        return torch.where(outward, grad - along * p.sgn(), grad), None


class ModalFilter(torch.nn.Module):
    """Short filter, gates and long modal filter on projected inputs: (B, T, 3 width) -> (B, T, width).

    Args:
        width: channels.
        state_size: complex modes S of each channel's long filter.
        groups: heads by which the 3 width channels are laid out if `column_split`: channels of head g are
            [x2 | x1 | v] of that head; without it, [all x2 | all x1 | all v].
        short_length: taps of the short filter, 1 to 8; `short_bias`: whether it has a bias.
        max_radius: poles farther from 0 are drawn back to this radius when used, so that training cannot make a mode
            grow. A mode remembers about 1 / (1 - radius) samples: sequences longer than those trained on need the
            memory to be shorter than those. None leaves poles as they are (the original's checkpoints may hold any).

    Parameters by the original's names: `D` (width,), `short_filter_weight` (3 width, 1, taps), `short_filter_bias`
    (3 width,), `poles` and `residues` (width, S, 1, 2), the last dimension real and imaginary part. Poles and residues
    stay float32 when the module is cast to a lower precision: rounded to bfloat16, a slow mode is another filter.
    They should have no weight decay.
    """

    WIDE = ("poles", "residues")

    def __init__(
        self,
        width: int,
        state_size: int = 8,
        groups: int = 1,
        *,
        column_split: bool = True,
        short_length: int = 3,
        short_bias: bool = True,
        max_radius: float | None = 0.999,
    ):
        super().__init__()
        if groups < 1 or width % groups:
            raise ValueError(f"ModalFilter: groups must divide width = {width}, got {groups}")
        self.width, self.groups, self.column_split, self.max_radius = width, groups, column_split, max_radius
        self.D = torch.nn.Parameter(torch.ones(width))
        self.short_filter_weight = torch.nn.Parameter(torch.empty(3 * width, 1, short_length))
        self.short_filter_bias = torch.nn.Parameter(torch.zeros(3 * width)) if short_bias else None
        self.poles = torch.nn.Parameter(torch.empty(width, state_size, 1, 2, dtype=torch.float32))
        self.residues = torch.nn.Parameter(torch.empty(width, state_size, 1, 2, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, longest: float = 128.0) -> None:
        """Modes of all time scales from 1 to `longest` samples (log-uniform), any phase, equal energy per mode."""
        bound = self.short_filter_weight.shape[-1] ** -0.5
        self.short_filter_weight.uniform_(-bound, bound)
        shape, device = self.poles.shape[:2], self.poles.device
        radius = torch.exp(-torch.exp(-math.log(longest) * torch.rand(shape, device=device)))
        angle = math.pi * (2 * torch.rand(shape, device=device) - 1)
        self.poles.copy_(torch.stack([radius * angle.cos(), radius * angle.sin()], -1)[:, :, None])
        # sum_t |R p^t|^2 = |R|^2 / (1 - |p|^2) = 1 / S
        scale = ((1 - radius.square()) / max(1, 2 * shape[1])).sqrt()
        self.residues.copy_(torch.randn(*shape, 1, 2, device=device) * scale[..., None, None])

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        kept = [p for name in self.WIDE if (p := getattr(self, name)) is not None]
        kept += [p.grad for p in kept if p.grad is not None]

        def careful(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            narrow = result.dtype.itemsize < 4 and any(tensor is k for k in kept)
            return tensor.to(result.device) if narrow else result

        return super()._apply(careful, recurse)

    def modes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(poles, residues), each (width, S) complex, as they are used."""
        poles, residues = (torch.view_as_complex(getattr(self, n)[:, :, 0].contiguous()) for n in self.WIDE)
        if self.max_radius is not None:
            poles = _Inside.apply(poles, self.max_radius)
        return poles, residues

    def forward(
        self, z: torch.Tensor, cache: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """z: (B, T, 3 width); cache: what an earlier call returned (never written to), or None at the beginning.

        Returns (B, T, width) and {"fir": (B, 3 width, taps - 1), the last inputs; "iir": (B, width, S) complex64}.
        """
        fir, iir = (None, None) if cache is None else (cache["fir"].to(z.dtype), cache["iir"])
        weight, modes = self.short_filter_weight[:, 0], self.modes()
        options = {
            "bias": self.short_filter_bias,
            "skip": self.D,
            "groups": self.groups if self.column_split else 1,
            "fir_state": fir,
        }
        if z.shape[1] == 1:
            y, fir, iir = tkpy.hyena_step(z[:, 0], weight, *modes, state=iir, **options)
            y = y[:, None]
        else:
            y, fir, iir = tkpy.hyena_mixer(z, weight, *modes, initial_state=iir, output_final_state=True, **options)
        return y, {"fir": fir, "iir": iir}


class HyenaMixer(torch.nn.Module):
    """A causal sequence mixer in place of attention: (B, T, width) -> (B, T, width), linear in T.

    Args:
        width: of input and output.
        state_size, groups, column_split, short_length, short_bias, max_radius: as of `ModalFilter`.
        bias: of both projections.
        linear_cls: builds the two projections.

    `edit` (tkpy.nn.HeadEdit) acts on groups of channels before the output projection.
    """

    def __init__(
        self,
        width: int,
        state_size: int = 8,
        groups: int = 1,
        *,
        bias: bool = True,
        column_split: bool = True,
        short_length: int = 3,
        short_bias: bool = True,
        max_radius: float | None = 0.999,
        linear_cls: LinearClass = Linear,
    ):
        super().__init__()
        self.projections = linear_cls(width, 3 * width, bias=bias)
        self.filter = ModalFilter(
            width,
            state_size,
            groups,
            column_split=column_split,
            short_length=short_length,
            short_bias=short_bias,
            max_radius=max_radius,
        )
        self.out_filter_dense = linear_cls(width, width, bias=bias)
        self.edit = HeadEdit(groups, width // groups)

    def forward(
        self, x: torch.Tensor, cache: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """x: (B, T, width), already normalised; cache as of `ModalFilter`. Returns (B, T, width) and the new cache."""
        y, carried = self.filter(self.projections(x), cache)
        y = self.edit(y.unflatten(-1, (self.edit.heads, -1))).flatten(-2)
        return self.out_filter_dense(y), carried
