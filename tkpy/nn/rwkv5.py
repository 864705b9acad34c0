"""The two layers of RWKV-5 "Eagle" (Peng et al. 2024, arXiv:2404.05892): time mix and channel mix.

Parameters are named and initialised as in BlinkDL's original. Each layer maps (x, state) to (y, new state), where x is
(B, T, C) and already normalised, and the state a mapping of tensors, batch first, that continues the sequence exactly.
A state that went in is never written to, and one that comes out shares no memory with x.

Versions: 5.0 (no gate, one decay and bonus per head), 5.1 (a gate), 5.2 (decay and bonus per channel; World v2, Eagle).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import tkpy
from tkpy.arguments import autocast_enabled
from tkpy.nn.common import HeadEdit, Linear, LinearClass, bare
from tkpy.ops.time_mix_step.op import MAX_BATCH

VERSIONS = ("5.0", "5.1", "5.2")

State = Mapping[str, torch.Tensor]


def _depth_ratios(layer: int, depth: int) -> tuple[float, float]:
    """(0 at the first layer to 1 at the last, 1 at the first to nearly 0 at the last)."""
    if not 0 <= layer < depth:
        raise ValueError(f"rwkv5: layer must lie in 0..depth-1, got layer {layer} of depth {depth}")
    return layer / max(depth - 1, 1), 1 - layer / depth


def _mix(width: int, power: float) -> torch.nn.Parameter:
    return torch.nn.Parameter((torch.arange(width).float() / width).pow(power).view(1, 1, width))


@torch.no_grad()
def _initialise(layer: torch.nn.Module, zero: bool) -> None:
    """Zeros, or orthogonal with the gain that keeps the size of what a widening layer puts out."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.nn.Parameter) or not weight.is_floating_point() or weight.is_meta:
        return  # a layer of another `linear_cls` keeps its own initialisation
    if zero:
        weight.zero_()
    else:
        rows, columns = weight.shape
        torch.nn.init.orthogonal_(weight, gain=math.sqrt(max(1.0, rows / columns)))


def _to_mix(
    x: torch.Tensor, last: torch.Tensor | None, mixes: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The token before x, and `mixes` as one tensor, (M, C), both of x's dtype."""
    return None if last is None else last.to(x.dtype), torch.cat(list(mixes)).flatten(1).to(x.dtype)


def _mixed(
    x: torch.Tensor, last: torch.Tensor | None, mixes: Sequence[torch.Tensor]
) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """x mixed with the token before it by each of `mixes`; and a copy of the token to carry on, (B, C)."""
    last, mix = _to_mix(x, last, mixes)
    mixed = tkpy.token_shift(x, mix, last)
    if x.shape[1]:
        return mixed.unbind(), x[:, -1].clone()
    return mixed.unbind(), x.new_zeros(x.shape[0], x.shape[2]) if last is None else last.clone()


class TimeMix(torch.nn.Module):
    """Linear attention with token shift, a decaying state, group norm and gate (paper: "Eagle time mixing").

    Args:
        hidden: width C of input and output.
        head_size: channels N of a head, a divisor of the attention width.
        layer, depth: position in the stack, for the initialisation.
        attention: width of the heads together; None is `hidden`.
        version: "5.0", "5.1" or "5.2".
        group_norm_eps: of the norm of the heads' outputs. 64e-5 is the original's 1e-5 on outputs divided by 8.
        linear_cls: builds the projections.

    `edit` (tkpy.nn.HeadEdit) acts on the gated outputs of the heads. `enable_time_state()` makes the initial state a
    parameter, as in BlinkDL's state tuning.
    """

    time_state: torch.nn.Parameter | None

    def __init__(
        self,
        hidden: int,
        head_size: int = 64,
        layer: int = 0,
        depth: int = 1,
        *,
        attention: int | None = None,
        version: str = "5.2",
        group_norm_eps: float = 64e-5,
        linear_cls: LinearClass = Linear,
    ):
        super().__init__()
        attention = hidden if attention is None else attention
        if version not in VERSIONS:
            raise ValueError(f"TimeMix: version must be one of {', '.join(VERSIONS)}, got {version!r}")
        if head_size < 1 or attention % head_size:
            raise ValueError(f"TimeMix: head_size must divide the attention width {attention}, got {head_size}")
        self.heads, self.head_size, self.version = attention // head_size, head_size, version
        rising, falling = _depth_ratios(layer, depth)
        self.time_mix_k = _mix(hidden, falling)
        self.time_mix_v = _mix(hidden, falling)
        self.time_mix_v.data += 0.3 * rising
        self.time_mix_r = _mix(hidden, 0.5 * falling)
        self._decay_parameters(rising)
        self.receptance = linear_cls(hidden, attention, bias=False)
        self.key = linear_cls(hidden, attention, bias=False)
        self.value = linear_cls(hidden, attention, bias=False)
        self.output = linear_cls(attention, hidden, bias=False)
        if version != "5.0":
            self.time_mix_g = _mix(hidden, 0.5 * falling)
            self.gate = linear_cls(hidden, attention, bias=False)
            _initialise(self.gate, zero=False)
        self.ln_x = torch.nn.GroupNorm(self.heads, attention, eps=group_norm_eps)
        self.ln_x.weight.data.fill_(((1 + layer) / depth) ** 0.7)
        self.edit = HeadEdit(self.heads, head_size)
        self.register_parameter("time_state", None)
        for projection in (self.receptance, self.key, self.value):
            _initialise(projection, zero=False)
        _initialise(self.output, zero=True)

    def _decay_parameters(self, rising: float) -> None:
        per_channel = self.version == "5.2"
        count = self.heads * self.head_size if per_channel else self.heads
        shape = (self.heads, self.head_size) if per_channel else (self.heads,)
        index = torch.arange(count)
        ratio = index.double() / max(count - 1, 1)
        self.time_decay = torch.nn.Parameter((-6 + 5 * ratio.pow(0.7 + 1.3 * rising)).view(shape).float())
        if self.version == "5.0":
            self.time_first = torch.nn.Parameter(torch.full(shape, -3.0))
        else:
            zigzag = ((index + 1) % 3 - 1).double() * 0.1 if per_channel else 0.0
            self.time_faaaa = torch.nn.Parameter((rising * (1 - ratio) + zigzag).view(shape).float())

    def enable_time_state(self) -> TimeMix:
        """Make the initial state a parameter of zeros: (H, N value, N key), as BlinkDL stores it, in float32."""
        shape = (self.heads, self.head_size, self.head_size)
        self.time_state = torch.nn.Parameter(torch.zeros(shape, device=self.time_decay.device))
        return self

    def decay_and_bonus(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(w, u) of `tkpy.wkv5`, (H, N) each, at least float32: decays near 1 do not survive in 16 bits."""
        w: torch.Tensor = self.time_decay
        u = self.time_first.exp() if self.version == "5.0" else self.time_faaaa
        w, u = (t.float() if t.itemsize < 4 else t for t in (w, u))
        if self.version != "5.2":
            w, u = (t[:, None].expand(self.heads, self.head_size) for t in (w, u))
        return w, u

    def _initial(self, x: torch.Tensor, state: State | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if state is not None:
            return state["att_x"], state["att_kv"]
        if self.time_state is None:
            return None, None
        wide = self.time_state.double() if x.dtype == torch.float64 else self.time_state.float()
        return None, wide.mT.expand(x.shape[0], -1, -1, -1)

    def _projections(self) -> list[torch.nn.Module]:
        """Of r, k, v and, but for 5.0, the gate."""
        gate = [] if self.version == "5.0" else [self.gate]
        return [self.receptance, self.key, self.value, *gate]

    def _mixes(self) -> list[torch.Tensor]:
        gate = [] if self.version == "5.0" else [self.time_mix_g]
        return [self.time_mix_r, self.time_mix_k, self.time_mix_v, *gate]

    def _norm(self) -> dict[str, Any]:
        weight, bias = (p.view(self.heads, self.head_size) for p in (self.ln_x.weight, self.ln_x.bias))
        return {"weight": weight, "bias": bias, "eps": self.ln_x.eps}

    def _in_one_op(self, x: torch.Tensor) -> bool:
        """Whether `tkpy.time_mix_step` takes all before the output: one token, and layers that are their weights."""
        return (
            x.dim() == 3
            and x.shape[1] == 1
            and x.shape[0] <= MAX_BATCH
            and not autocast_enabled(x.device)
            and bare(*self._projections())
            and all(
                layer.bias is None and layer.weight.dtype == x.dtype and not is_traceable_wrapper_subclass(layer.weight)
                for layer in self._projections()
            )
        )

    def forward(self, x: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """x (B, T, C), state {"att_x": (B, C), "att_kv": (B, H, N, N), float32, key channel as row} -> (y, state)."""
        last, kv = self._initial(x, state)
        if self._in_one_op(x):
            last, mix = _to_mix(x, last, self._mixes())
            r, k, v, gate = [*(layer.weight for layer in self._projections()), None][:4]
            w, u = self.decay_and_bonus()
            z, kv = tkpy.time_mix_step(x[:, 0], last, mix, r, k, v, gate, w, u, initial_state=kv, **self._norm())
            z, last = z[:, None], x[:, 0].clone()
        else:
            mixed, last = _mixed(x, last, self._mixes())
            shape = (*x.shape[:2], self.heads, self.head_size)
            z, kv = self._attend(kv, *(f(m).view(shape) for f, m in zip(self._projections(), mixed, strict=True)))
        return self.output(self.edit(z).flatten(2)), {"att_x": last, "att_kv": kv}

    def _attend(
        self,
        kv: torch.Tensor | None,
        r: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        gate: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised and gated outputs of the heads, (B, T, H, N), and the state; a single token in one step."""
        w, u = self.decay_and_bonus()
        if r.shape[1] == 1:
            r, k, v = (t[:, 0] for t in (r, k, v))
            gate = None if gate is None else gate[:, 0]
            z, state = tkpy.wkv5_step(r, k, v, w, u, gate=gate, initial_state=kv, **self._norm())
            return z[:, None], state
        y, state = tkpy.wkv5(r, k, v, w, u, initial_state=kv, output_final_state=True)
        return tkpy.group_norm(y, gate=gate, **self._norm()), state


class ChannelMix(torch.nn.Module):
    """The feed-forward layer of RWKV-5: sigmoid(W_r x_r) * W_v relu(W_k x_k)^2, with token shift.

    Args:
        hidden: width C of input and output.
        inner: width F of the squared-relu layer.
        layer, depth: position in the stack, for the initialisation.
        linear_cls: builds the projections.
    """

    def __init__(self, hidden: int, inner: int, layer: int = 0, depth: int = 1, *, linear_cls: LinearClass = Linear):
        super().__init__()
        _, falling = _depth_ratios(layer, depth)
        self.time_mix_k = _mix(hidden, falling)
        self.time_mix_r = _mix(hidden, falling)
        self.key = linear_cls(hidden, inner, bias=False)
        self.receptance = linear_cls(hidden, hidden, bias=False)
        self.value = linear_cls(inner, hidden, bias=False)
        _initialise(self.key, zero=False)
        _initialise(self.receptance, zero=True)
        _initialise(self.value, zero=True)

    def forward(self, x: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """x (B, T, C), state {"ffn_x": (B, C)} -> (y, state)."""
        before = None if state is None else state["ffn_x"]
        (for_key, for_receptance), last = _mixed(x, before, (self.time_mix_k, self.time_mix_r))
        k = self.key(for_key).relu().square()
        r = self.receptance(for_receptance).sigmoid()
        return r * self.value(k), {"ffn_x": last}
