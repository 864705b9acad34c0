"""The ladder's kernels, launched in the emulator on guarded tensors and compared with float64."""

import torch
from kernel_cases import SHARED

from tkpy import emulator

GUARD = 64  # elements of NaN before and after every tensor


class Guarded:
    """A tensor inside a NaN-filled buffer: what it does not hold must stay NaN."""

    def __init__(self, rows: int, cols: int, fill: bool = True):
        self.pitch = (cols + 7) // 8 * 8
        self.buffer = torch.full((2 * GUARD + rows * self.pitch,), float("nan"), dtype=torch.bfloat16)
        self.tensor = self.buffer[GUARD:-GUARD].view(rows, self.pitch)[:, :cols]
        if fill:
            self.tensor.copy_(torch.randn(rows, cols))

    def intact(self) -> bool:
        outside = self.buffer.clone()
        rows, cols = self.tensor.shape
        outside[GUARD:-GUARD].view(rows, self.pitch)[:, :cols] = float("nan")
        return bool(outside.isnan().all())

    def matches(self, want: torch.Tensor, tolerance: float) -> bool:
        got = self.tensor.double()
        return bool(got.isfinite().all()) and bool((got - want).norm() <= tolerance * want.norm()) and self.intact()


def box(tensor: torch.Tensor) -> "emulator.TensorMap":
    return emulator.TensorMap(tensor, (64, 64), swizzle=128)


def blocks(size: int, tile: int) -> int:
    return -(-size // tile)


def run_copy(module, rows, cols, seed, name="level1_copy_tile"):
    x, y = Guarded(rows, cols), Guarded(rows, cols, fill=False)
    args = [box(x.tensor), box(y.tensor)]
    run = module.launch(name, grid=(blocks(cols, 64), blocks(rows, 64)), block=32, args=args, seed=seed)
    return run, y.matches(x.tensor.double(), 0.0)


def run_softmax(module, rows, cols, seed, name="level2_row_softmax"):
    x, y = Guarded(rows, cols), Guarded(rows, cols, fill=False)
    x.tensor.mul_(10)
    args = [box(x.tensor), box(y.tensor), cols]
    run = module.launch(name, grid=blocks(rows, 64), block=128, args=args, seed=seed)
    return run, y.matches(x.tensor.double().softmax(1), 3e-3)


def run_gemm(module, level, m, k, n, seed, clusters=2, name=None):
    stem = {3: "level3_gemm", 4: "level4_gemm_pipelined", 5: "level5_gemm_specialised"}[level]
    a, b, c = Guarded(m, k), Guarded(k, n), Guarded(m, n, fill=False)
    maps = [box(a.tensor), box(b.tensor), box(c.tensor)]
    shape = {
        3: {"grid": (blocks(n, 128), blocks(m, 64)), "block": 128, "args": [*maps, k]},
        4: {"grid": (blocks(n, 256), blocks(m, 64)), "block": 128, "args": [*maps, k]},
        5: {"grid": 2 * clusters, "block": 384, "cluster": 2, "args": [*maps, m, n, k]},
    }[level]
    budget = 3_000_000  # warp instructions of a CTA: a program that spins for ever stops soon
    run = module.launch(name or stem, shared=SHARED.get(stem, 0), seed=seed, max_instructions=budget, **shape)
    return run, c.matches(a.tensor.double() @ b.tensor.double(), 3e-3)
