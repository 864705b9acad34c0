"""Rows of `wkv5_step` and `hyena_step`: what one token costs in the mixers of RWKV-5 and StripedHyena, at their sizes.

Peers: plain PyTorch as torch.compile fuses it, and the two or three ops that the fused ones take the place of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import tkpy
from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled
from tkpy.bench.spec import Benchmark, Peer
from tkpy.registry import Maker


def _wkv5(maker: Maker, b: int, h: int, n: int) -> Kwargs:
    kwargs: Kwargs = {name: maker.randn(b, h, n, scale=0.7) for name in ("r", "k", "v", "gate")}
    kwargs |= {"w": maker.uniform(-6.0, 1.0, h, n, dtype=maker.wide), "u": maker.randn(h, n, dtype=maker.wide)}
    kwargs |= {"weight": maker.randn(h, n), "bias": maker.randn(h, n)}
    return kwargs | {"initial_state": maker.randn(b, h, n, n, dtype=maker.wide), "eps": 64e-5}


def _hyena(maker: Maker, b: int, w: int, s: int, k: int, groups: int) -> Kwargs:
    def pairs(*shape: int) -> torch.Tensor:
        return torch.complex(*(maker.randn(*shape, dtype=maker.wide) for _ in range(2)))

    size = maker.uniform(0.3, 0.995, w, s, dtype=maker.wide)
    return {
        "z": maker.randn(b, 3 * w),
        "weight": maker.randn(3 * w, k),
        "bias": maker.randn(3 * w),
        "poles": torch.polar(size, maker.uniform(0.0, 2 * torch.pi, w, s, dtype=maker.wide)),
        "residues": pairs(w, s),
        "skip": maker.randn(w),
        "groups": groups,
        "fir_state": maker.randn(b, 3 * w, k - 1),
        "state": pairs(b, w, s),
    }


def time_mix(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor,
    initial_state: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence, torch's group norm and the gate, in float32."""
    r, k, v = (t.float() for t in (r, k, v))
    kv = k[..., None] * v[..., None, :]
    y = (r[..., None] * (initial_state + u[..., None] * kv)).sum(-2)
    z = F.group_norm(y.flatten(1), r.shape[1], weight.float().flatten(), bias.float().flatten(), eps).view_as(y)
    return (z * F.silu(gate.float())).to(gate.dtype), (-w.exp()).exp()[..., None] * initial_state + kv


def _two_ops(kwargs: Kwargs) -> Callable[[], Any]:
    """wkv5 and group_norm on a sequence of one token."""
    r, k, v, gate = (kwargs[name][:, None] for name in ("r", "k", "v", "gate"))
    w, u, state = kwargs["w"], kwargs["u"], kwargs["initial_state"]

    def call() -> Any:
        y, new = tkpy.wkv5(r, k, v, w, u, initial_state=state, output_final_state=True)
        return tkpy.group_norm(y, kwargs["weight"], kwargs["bias"], gate=gate, eps=kwargs["eps"])[:, 0], new

    return call


def _three_ops(kwargs: Kwargs) -> Callable[[], Any]:
    """short_conv, the split and modal_conv on a sequence of one sample."""
    groups = kwargs["groups"]

    def call() -> Any:
        filtered, inputs = tkpy.short_conv(
            kwargs["z"][..., None], kwargs["weight"], kwargs["bias"], initial_state=kwargs["fir_state"],
            output_final_state=True,
        )  # fmt: skip
        x2, x1, v = (part.flatten(1, 2) for part in filtered.unflatten(1, (groups, 3, -1)).unbind(2))
        y, state = tkpy.modal_conv(
            v, kwargs["poles"], kwargs["residues"], kwargs["skip"], pre_gate=x1, post_gate=x2,
            initial_state=kwargs["state"], output_final_state=True,
        )  # fmt: skip
        return y[..., 0], inputs, state

    return call


_ONCE = "flops are few beside bytes, and not the tensor cores'"

WKV5_STEP = OpRows(
    op="wkv5_step",
    sizes=("b", "h", "n"),
    make=_wkv5,
    rows=tuple({"b": b, "h": h, "n": 64} for b, h in ((1, 32), (1, 64), (64, 64), (512, 32))),
    peers=(compiled(time_mix), Peer("wkv5, group_norm", _two_ops)),
    unit="GB/s",
    inputs="normal of deviation 0.7, raw decays uniform from -6 to 1",
    what="one token of RWKV-5's recurrence with its norm and gate",
    rank=lambda sizes: 110 if sizes["b"] in (1, 64) else 200,
    trained=(),
    counted=tuple(
        Counted({"b": b, "h": 2, "n": n}, Promise(flops=None, why=_ONCE), None) for b, n in ((3, 64), (2, 128), (4, 32))
    ),
)
HYENA_STEP = OpRows(
    op="hyena_step",
    sizes=("b", "w", "s", "k", "groups"),
    make=_hyena,
    rows=tuple({"b": b, "w": 4096, "s": 8, "k": 3, "groups": 256} for b in (1, 64, 512)),
    peers=(Peer("short_conv, modal_conv", _three_ops),),
    unit="GB/s",
    inputs="standard normal; poles of radius 0.3 to 0.995",
    what="one token of StripedHyena's Hyena layer between its projections",
    rank=lambda sizes: 110 if sizes["b"] in (1, 64) else 200,
    defaults={"k": 3, "groups": 1},
    trained=(),
    counted=(Counted({"b": 4, "w": 128, "s": 8, "k": 3, "groups": 8}, Promise(flops=None, why=_ONCE), None),),
)


def benchmarks() -> list[Benchmark]:
    """The rows of the two."""
    return [b for rows in (WKV5_STEP, HYENA_STEP) for b in rows.benchmarks()]
