"""Calls of the GEMM's launchers for gated products and their backward, and what each should return, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tkpy import machine, registry
from tkpy.numerics import TOLERANCE, compare
from tkpy.registry import Maker

CUDA = registry.get("gated_mlp").module("cuda")
REFERENCE = registry.get("gated_mlp").module("reference")


@dataclass(frozen=True)
class Run:
    """`start()` launches a kernel on small inputs and returns (what, found, expected) of each output."""

    name: str
    start: Callable[[], list[tuple[str, torch.Tensor, torch.Tensor]]]

    def __str__(self) -> str:
        return self.name

    def wrong(self) -> str:
        """The first output that is not what was expected."""
        for what, found, expected in self.start():
            comparison = compare(found, expected, TOLERANCE[found.dtype])
            if not comparison:
                return f"{self.name}, {what}: {comparison}"
        return ""


def blocks_of(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (rows, channels) times a block-diagonal weight (groups, K, N), channels that do not exist taken as 0."""
    groups, depth, _ = weight.shape
    x = torch.nn.functional.pad(x.double(), (0, groups * depth - x.shape[1]))
    return torch.einsum("rgk,gkn->rgn", x.view(len(x), groups, depth), weight.double()).flatten(1)


def within(m: Maker, rows: int, cols: int, pitch: int, scale: float = 1.0) -> torch.Tensor:
    """Columns of a matrix that is NaN around them; what goes before them is a multiple of four."""
    around = torch.full((rows, pitch), float("nan"), dtype=m.dtype)
    here = around[:, (pitch - cols) // 4 * 4 :][:, :cols]
    here.copy_(m.randn(rows, cols, scale=scale))
    return here


def slopes(
    rows: int, groups: int, depth: int, width: int, *, lost: int = 0, pitch: int = 0, activation: str = "silu",
    which: str = "both", dtype: torch.dtype = torch.bfloat16, scale: float = 1.0,
) -> Run:  # fmt: skip
    """dgate, dvalue and h of `groups` blocks of `width` columns, of which `lost` do not exist."""
    name = f"slopes {rows}x{groups}x{depth}x{width} {activation} {which}"

    def start():
        m, cols = Maker(dtype), groups * width - lost
        dy, weight = m.randn(rows, groups * depth), m.randn(groups, depth, width, scale=max(depth, 1) ** -0.5)
        gate, value = (within(m, rows, cols, cols + pitch, scale) for _ in range(2))
        dz = m.randn(2, rows, cols + pitch)[..., :cols]
        h = torch.full((rows, cols), float("nan"), dtype=dtype)
        before = None if not pitch else dz[0].as_strided((rows, pitch), (cols + pitch, 1), cols).clone()
        parts = {"both": (tuple(dz), h), "slopes": (tuple(dz), None), "h": (None, h)}[which]
        CUDA.slopes(dy, weight, (gate, value), activation, dz=parts[0], h=parts[1])
        dh = blocks_of(dy, weight)[:, :cols]
        g = gate.double().requires_grad_()
        open_ = REFERENCE.ACTIVATIONS[activation](g)
        (slope,) = torch.autograd.grad(open_.sum(), g)
        open_, v = open_.detach(), value.double()
        found = [] if parts[0] is None else [("dgate", dz[0], dh * v * slope), ("dvalue", dz[1], dh * open_)]
        if before is not None:
            found.append(("past dgate's rows", dz[0].as_strided((rows, pitch), (cols + pitch, 1), cols), before))
        return found + ([] if parts[1] is None else [("h", h, open_ * v)])

    return Run(name, start)


def pair(rows: int, depth: int, width: int, dtype: torch.dtype = torch.bfloat16, spare: int = 0) -> Run:
    """a_0 b1 + a_1 b2; of a, `spare` columns of NaN lie between the rows."""

    def start():
        m = Maker(dtype)
        a = torch.full((2, rows, depth + spare), float("nan"), dtype=dtype)[..., :depth]
        a.copy_(m.randn(2, rows, depth))
        b1, b2 = (m.randn(depth, width, scale=max(depth, 1) ** -0.5) for _ in range(2))
        out = torch.empty(rows, width, dtype=dtype)
        machine.launch("gemm_pair", a, b1, b2, out, op="gated_mlp")
        return [("out", out, a[0].double() @ b1.double() + a[1].double() @ b2.double())]

    return Run(f"pair {rows}x{depth}x{width}", start)


def kept(
    rows: int, groups: int, depth: int, width: int, which: str = "both", dtype: torch.dtype = torch.bfloat16
) -> Run:
    """h, the gate and the value of `groups` half-blocks, or of one group of all channels."""

    def start():
        m, halves = Maker(dtype), groups > 1
        x = m.randn(rows, groups * depth)
        weights = m.randn(2, groups, width, depth, scale=max(depth, 1) ** -0.5)
        z = torch.full((rows, 2 * groups * width), float("nan"), dtype=dtype)
        both = (z[:, : groups * width], z[:, groups * width :])
        h = None if which == "kept" else torch.empty(rows, groups * width, dtype=dtype)
        CUDA.gated(x, *weights, "silu", h=h, kept=both, halves=halves)
        if halves:  # half-block b is made of block b / 2
            wide = torch.cat(tuple(weights)).view(groups, 2 * width, depth)
            expected = blocks_of(x, wide.mT).chunk(2, 1)
        else:
            expected = tuple(x.double() @ w[0].double().T for w in weights)
        found = [("gate", both[0], expected[0]), ("value", both[1], expected[1])]
        return found + ([] if h is None else [("h", h, torch.nn.functional.silu(expected[0]) * expected[1])])

    return Run(f"kept {rows}x{groups}x{depth}x{width} {which}", start)


@functools.cache
def all_runs() -> tuple[Run, ...]:
    """Every feature, small."""
    return (
        slopes(140, 1, 72, 264),
        slopes(140, 2, 72, 40, activation="gelu"),
        slopes(33, 3, 8, 24, lost=9, activation="gelu_tanh"),
        slopes(21, 2, 7, 13, pitch=3, activation="relu"),
        slopes(21, 2, 8, 16, pitch=4, activation="relu"),
        slopes(70, 1, 40, 72, which="slopes"),
        slopes(70, 1, 40, 72, which="h"),
        slopes(9, 1, 0, 24),
        slopes(40, 1, 16, 24, activation="gelu", scale=300.0),
        slopes(40, 1, 16, 24, activation="gelu_tanh", scale=300.0),
        slopes(40, 1, 16, 24, activation="silu", scale=300.0),
        pair(140, 72, 264),
        pair(9, 13, 7),
        pair(150, 40, 24, spare=8),
        pair(5, 0, 8),
        kept(140, 1, 72, 136),
        kept(140, 2, 16, 40, "kept"),
        kept(30, 3, 9, 13),
    )
