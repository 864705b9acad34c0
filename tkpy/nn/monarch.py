"""Monarch Mixer's layers (Fu et al. 2023, arXiv:2310.12109): gated long convolutions and a block-diagonal MLP.

Parameter names are those of the original M2-BERT, so its checkpoints load by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import tkpy
from tkpy.nn.common import LayerNorm, Linear, LinearClass, bare


class BlockdiagLinear(torch.nn.Module):
    """A block-diagonal dense layer on `tkpy.blockdiag_linear`: (..., in_features) -> (..., out_features).

    Args:
        in_features, out_features: any sizes; those that `nblocks` does not divide are padded inside.
        bias: whether to add one.
        nblocks: blocks; the layer has 1/nblocks of a dense layer's weights.
        shuffle: spread the inputs of every block over all groups first (as ShuffleNet's channel shuffle).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, nblocks: int = 4, shuffle: bool = False):
        super().__init__()
        if min(in_features, out_features, nblocks) < 1:
            raise ValueError(
                f"BlockdiagLinear: needs positive sizes, got {in_features} -> {out_features} in {nblocks} blocks"
            )
        self.in_features, self.out_features, self.shuffle = in_features, out_features, shuffle
        blocks = (nblocks, -(-out_features // nblocks), -(-in_features // nblocks))
        self.weight = torch.nn.Parameter(torch.empty(blocks))
        self.bias = torch.nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The original's: a dense Kaiming-uniform matrix, scaled by sqrt(nblocks) because 1/nblocks of it is kept."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.out_features)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tkpy.blockdiag_linear(x, self.weight, self.bias, shuffle=self.shuffle, out_features=self.out_features)

    def convert_to_dense_weight(self) -> torch.Tensor:
        """The equal dense matrix, (out_features, in_features): forward(x) = x @ dense.T + bias."""
        eye = torch.eye(self.in_features, dtype=self.weight.dtype, device=self.weight.device)
        return tkpy.blockdiag_linear(eye, self.weight, shuffle=self.shuffle, out_features=self.out_features).T

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return (
            f"{self.in_features}, {self.out_features}, bias={bias}, nblocks={len(self.weight)}, shuffle={self.shuffle}"
        )


class Sin(torch.nn.Module):
    """sin(w_mod * freq * x) with a trainable frequency per channel."""

    def __init__(self, width: int, w: float = 10.0, w_mod: float = 1.0):
        super().__init__()
        self.w_mod = w_mod
        self.freq = torch.nn.Parameter(torch.full((1, width), float(w)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.w_mod * self.freq.to(x.dtype) * x)


class PositionFeatures(torch.nn.Module):
    """What the filter network sees of a lag: z = [t, cos(f w), -sin(f w)], (1, l_max, emb_dim), trainable."""

    t: torch.Tensor

    def __init__(self, emb_dim: int, l_max: int):
        super().__init__()
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"HyenaFilter: emb_dim must be odd and at least 3, got {emb_dim}")
        bands = (emb_dim - 1) // 2
        t = torch.linspace(0, 1, l_max)[None, :, None]
        angle = 2 * math.pi * torch.linspace(0, l_max - 1, l_max)[None, :, None] / l_max
        angle = torch.linspace(1e-4, bands - 1, bands) * angle
        self.z = torch.nn.Parameter(torch.cat([t, angle.cos(), -angle.sin()], -1))
        self.register_buffer("t", t)


class Modulation(torch.nn.Module):
    """exp(-t |delta|): each channel forgets at its own rate, from 0.01^(1/1.5) to 0.01^(1/0.3) at t = 1."""

    deltas: torch.Tensor

    def __init__(self, width: int, *, fast: float = 0.3, slow: float = 1.5, target: float = 1e-2):
        super().__init__()
        self.register_buffer(
            "deltas", torch.linspace(math.log(target) / slow, math.log(target) / fast, width)[None, None]
        )


class HyenaFilter(torch.nn.Module):
    """A long convolution whose filters are a small network of the lag (Poli et al. 2023, arXiv:2302.10866, 3.3).

    The network is linear, sin, linear, sin, linear, sin, linear; one `Sin` serves all activations, forward and reverse.
    Filters depend on no input. They are computed in float32 (float64 in float64 models), whatever autocast or
    `module.to(torch.bfloat16)` say: a lag among 32768 does not survive 8 bits of mantissa. So the filter's parameters
    keep their dtype under a cast to a narrower one.

    Args:
        width: channels.
        l_max: longest sequence.
        order: width of the network.
        emb_dim: features of a lag, odd.
        w, w_mod: initial frequency of the sines, and a fixed factor on it.
        bidirectional: a second network gives the taps that look ahead.
    """

    def __init__(
        self,
        width: int,
        l_max: int,
        *,
        order: int = 128,
        emb_dim: int = 5,
        w: float = 10.0,
        w_mod: float = 1.0,
        bidirectional: bool = True,
    ):
        super().__init__()
        self.l_max, self.bidirectional = l_max, bidirectional
        self.bias = torch.nn.Parameter(torch.randn(width))
        sin = Sin(order, w, w_mod)
        self.pos_emb = PositionFeatures(emb_dim, l_max)
        self.implicit_filter = self._network(emb_dim, order, width, sin)
        if bidirectional:
            self.implicit_filter_rev = self._network(emb_dim, order, width, sin)
        self.modulation = Modulation(width)

    @staticmethod
    def _network(emb_dim: int, order: int, width: int, sin: Sin) -> torch.nn.Sequential:
        hidden = [torch.nn.Linear(emb_dim, order), sin]
        for _ in range(2):
            hidden += [torch.nn.Linear(order, order), sin]
        return torch.nn.Sequential(*hidden, torch.nn.Linear(order, width, bias=False))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def keep_wide(t: torch.Tensor) -> torch.Tensor:
            new = fn(t)
            return t.to(new.device) if new.dtype in (torch.bfloat16, torch.float16) else new

        return super()._apply(keep_wide, recurse)

    def _taps(self, network: torch.nn.Sequential, length: int) -> torch.Tensor:
        """(width, length), contiguous along the sequence as the convolution reads it."""
        if length > self.l_max:
            raise ValueError(
                f"HyenaFilter: the sequence must have at most l_max = {self.l_max} positions, got {length}"
            )
        layers: list[Any] = list(network)  # dense ones, with the sine between them
        (first, *hidden, last), sin = layers[::2], layers[1]
        wide = torch.promote_types(self.pos_emb.z.dtype, torch.float32)
        arguments = (
            self.pos_emb.z[0, :length],
            self.pos_emb.t[0, :length, 0],
            first.weight,
            first.bias,
            torch.stack([layer.weight for layer in hidden]),
            torch.stack([layer.bias for layer in hidden]),
            sin.w_mod * sin.freq[0],
            last.weight,
            self.modulation.deltas[0, 0],
        )
        return tkpy.hyena_filter(*(t.to(wide) for t in arguments))

    def filter(self, length: int) -> torch.Tensor:
        """The taps of lags 0 to length - 1, (1, length, width)."""
        return self._taps(self.implicit_filter, length).T[None]

    def filter_rev(self, length: int) -> torch.Tensor:
        """The taps of lags -1 to -length, (1, length, width)."""
        return self._taps(self.implicit_filter_rev, length).T[None]

    def forward(
        self, u: torch.Tensor, pre_gate: torch.Tensor | None = None, post_gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """post_gate * (filters convolved with (pre_gate * u) + bias * (pre_gate * u)); u and gates (B, width, L)."""
        length = u.shape[-1]
        k_reverse = self._taps(self.implicit_filter_rev, length) if self.bidirectional else None
        return tkpy.fft_conv(
            u,
            self._taps(self.implicit_filter, length),
            k_reverse=k_reverse,
            skip=self.bias,
            pre_gate=pre_gate,
            post_gate=post_gate,
        )


class ShortFilter(torch.nn.Module):
    """The causal depthwise convolution of 3 taps after the projections, named and shaped as a `torch.nn.Conv1d`."""

    def __init__(self, width: int, taps: int = 3):
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = torch.nn.Parameter(torch.empty(width, 1, taps).uniform_(-bound, bound))
        self.bias = torch.nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, width, L)."""
        y, _ = tkpy.short_conv(x, self.weight.squeeze(1), self.bias)
        return y


class MonarchMixer(torch.nn.Module):
    """The sequence mixer of M2-BERT: (B, L, width) -> (B, L, width), without a residual and without a mask.

    x1, x2, v = short convolution of in_linear(u);  y = x2 * long(x1 * v) + long2(u);  out_linear(y).

    Args:
        width: channels.
        l_max: longest sequence.
        bidirectional: whether the long convolutions look ahead; the short one never does.
        residual_long_conv: whether there is a second long convolution, on the input itself.
        training_additions: normalise the input first (the original's `hyena_training_additions`).
        order, emb_dim, w, w_mod: of the filters, see `HyenaFilter`.
        linear_cls: builds both projections.
    """

    def __init__(
        self,
        width: int,
        l_max: int,
        *,
        bidirectional: bool = True,
        residual_long_conv: bool = True,
        training_additions: bool = False,
        order: int = 128,
        emb_dim: int = 5,
        w: float = 10.0,
        w_mod: float = 1.0,
        linear_cls: LinearClass = Linear,
    ):
        super().__init__()
        filters: dict[str, Any] = {"order": order, "emb_dim": emb_dim, "w": w, "w_mod": w_mod}
        self.filter_fn = HyenaFilter(width, l_max, bidirectional=bidirectional, **filters)
        self.filter_fn2 = (
            HyenaFilter(width, l_max, bidirectional=bidirectional, **filters) if residual_long_conv else None
        )
        self.in_linear = linear_cls(width, 3 * width)
        self.out_linear = linear_cls(width, width)
        self.layernorm = LayerNorm(width) if training_additions else None
        self.short_filter = ShortFilter(3 * width)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        if self.layernorm is not None:
            u = self.layernorm(u)
        x1, x2, v = self.short_filter(self.in_linear(u).transpose(1, 2)).chunk(3, dim=1)  # (B, width, L) each
        y = self.filter_fn(v, pre_gate=x1, post_gate=x2)
        if self.filter_fn2 is not None:
            y = y + self.filter_fn2(u.transpose(1, 2))
        return self.out_linear(y.transpose(1, 2))


class MonarchMLP(torch.nn.Module):
    """The channel mixer of M2-BERT, residual and norm inside: LayerNorm(wo(h) + x), h = gelu(g) * n or gelu(g).

    Args:
        width, inner: sizes; the gated form makes 2 * inner and splits it into g and n.
        gated: GELU-gated linear unit (Shazeer 2020), or a plain GELU layer.
        nblocks: of the block-diagonal layers; None for dense ones.
        dropout: on h.
        eps: of the norm.
        linear_cls: builds the dense layers where `nblocks` is None.
        recompute: keep nothing of the inner width for the backward, which computes g and n again; for layers that
            `tkpy.blockdiag_mlp` takes as one: gated, in blocks, not dropping, neither hooked nor replaced.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        gated: bool = True,
        nblocks: int | None = 4,
        dropout: float = 0.0,
        eps: float = 1e-12,
        linear_cls: LinearClass = Linear,
        recompute: bool = False,
    ):
        super().__init__()

        def layer(inputs: int, outputs: int, bias: bool) -> torch.nn.Module:
            if nblocks is None:
                return linear_cls(inputs, outputs, bias=bias)
            return BlockdiagLinear(inputs, outputs, bias=bias, nblocks=nblocks)

        self.gated, self.inner, self.recompute = gated, inner, recompute
        self.gated_layers = layer(width, 2 * inner if gated else inner, False)
        self.wo = layer(inner, width, True)
        self.dropout = torch.nn.Dropout(dropout)
        self.layernorm = LayerNorm(width, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropping = self.training and self.dropout.p > 0
        first, wo = self.gated_layers, self.wo
        if self.gated and not dropping and bare(first, wo, kind=BlockdiagLinear):
            y = tkpy.blockdiag_mlp(x, first.weight, wo.weight, wo.bias, inner=self.inner, recompute=self.recompute)
            return self.layernorm(y + x)
        h = self.gated_layers(x)
        if self.gated:
            gate, value = h.chunk(2, dim=-1)
            h = F.gelu(gate) * value
        else:
            h = F.gelu(h)
        return self.layernorm(self.wo(self.dropout(h)) + x)
