"""The cases of an op: one table of calls that tests, `tkpy check`, benchmarks and the support matrix share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


class Maker:
    """Makes the inputs of a case: the same numbers for every backend, in the dtype and on the device under test."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0):
        self.dtype, self.device = dtype, torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def wide(self) -> torch.dtype:
        """dtype of parameters that stay float32 in low-precision calls (float64 in float64 calls)."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        return (torch.randn(*shape, generator=self.generator) * scale).to(self.device, dtype or self.dtype)

    def uniform(self, low: float, high: float, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return (torch.rand(*shape, generator=self.generator) * (high - low) + low).to(self.device, dtype or self.dtype)

    def randint(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(self.device)

    def ints(self, *values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of an op's table of cases, which feeds tests, `tkpy check`, benchmarks and the support matrix.

    `make(maker)` returns keyword arguments of the public function; `why` says what the case is there to catch.
    `tol` multiplies `numerics.TOLERANCE`; `grad` asks for gradients of every floating or complex tensor argument.
    A case with `bench` is a real shape: benchmarks run it, tests do not.
    """

    name: str
    make: Callable[[Maker], dict[str, Any]]
    why: str
    tol: float = 1.0
    grad: bool = True
    bench: bool = False
