"""Multi-head attention as a layer: projections, rotary positions, grouped heads, cache, block masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

import tkpy
from tkpy.nn.common import HeadEdit, Linear, LinearClass
from tkpy.ops.attention import BlockMask

#: Chooses the mask of one call from its (rotated) q (B, T, H, D) and k (B, S, Hkv, D); None sees everything.
MaskProvider = Callable[[torch.Tensor, torch.Tensor], BlockMask | None]


class Attention(torch.nn.Module):
    """out_proj(attention(q, k, v)), with q, k, v linear in x.

    Args:
        width: of input and output.
        heads: of queries.
        kv_heads: of keys and values, a divisor of `heads` (None: `heads`).
        head_dim: channels of a head (None: width / heads).
        bias: of the projections to q, k and v; `out_bias` of the output projection (None: as `bias`).
        fused: one projection `Wqkv`, rows [all of q | all of k | all of v], and `out_proj` (flash-attn's names), or
            `q_proj`, `k_proj`, `v_proj`, `o_proj` (Llama's names).
        causal, window, softcap: as of `tkpy.attention`.
        rotary_base: of `tkpy.rotary` on q and k; None for no rotary positions. `rotary_scaling` divides positions.
        linear_cls: builds the projections.

    `edit` (tkpy.nn.HeadEdit) acts on the heads' outputs before the output projection.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        fused: bool = True,
        causal: bool = True,
        window: tuple[int | None, int | None] | None = None,
        softcap: float = 0.0,
        rotary_base: float | None = 10000.0,
        rotary_scaling: float = 1.0,
        linear_cls: LinearClass = Linear,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"Attention: heads must be a multiple of kv_heads, got {heads} and {kv_heads}")
        if head_dim is None and width % heads:
            raise ValueError(f"Attention: heads must divide width = {width} unless head_dim is given, got {heads}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim or width // heads
        self.causal, self.window, self.softcap = causal, window, softcap
        self.rotary_base, self.rotary_scaling = rotary_base, rotary_scaling
        self.fused = fused
        inner, kv_inner, out_bias = (
            heads * self.head_dim,
            kv_heads * self.head_dim,
            bias if out_bias is None else out_bias,
        )
        if fused:
            self.Wqkv = linear_cls(width, inner + 2 * kv_inner, bias=bias)
            self.out_proj = linear_cls(inner, width, bias=out_bias)
        else:
            self.q_proj = linear_cls(width, inner, bias=bias)
            self.k_proj = linear_cls(width, kv_inner, bias=bias)
            self.v_proj = linear_cls(width, kv_inner, bias=bias)
            self.o_proj = linear_cls(inner, width, bias=out_bias)
        self.edit = HeadEdit(heads, self.head_dim)

    def forward(
        self,
        x: torch.Tensor,
        cache: Mapping[str, torch.Tensor] | None = None,
        *,
        position: int = 0,
        mask: BlockMask | MaskProvider | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Continue a sequence.

        Args:
            x: (B, T, width), already normalised.
            cache: {"k", "v"} (B, S, kv_heads, head_dim) of the S tokens before x, as an earlier call returned; never
                written to.
            position: of x's first token.
            mask: a BlockMask for (T, S + T), or a function that makes it from q and k; it holds beside `causal`.

        Returns:
            y (B, T, width) and the cache with x's tokens.
        """
        q, k, v = self._project(x)
        if self.rotary_base is not None:
            positions = torch.arange(position, position + x.shape[1], device=x.device)
            q, k = (tkpy.rotary(t, positions, base=self.rotary_base, scaling=self.rotary_scaling) for t in (q, k))
        if cache is not None:
            k, v = torch.cat([cache["k"].to(k.dtype), k], 1), torch.cat([cache["v"].to(v.dtype), v], 1)
        block_mask = mask(q, k) if callable(mask) else mask
        options = {"causal": self.causal, "window": self.window, "softcap": self.softcap}
        z = self.edit(tkpy.attention(q, k, v, block_mask=block_mask, **options)).flatten(2)
        return (self.out_proj if self.fused else self.o_proj)(z), {"k": k, "v": v}

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, width) -> q (B, T, heads, head_dim), k and v (B, T, kv_heads, head_dim)."""
        if self.fused:
            heads = self.Wqkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, self.head_dim))
            q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
            return q, k, v
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v
