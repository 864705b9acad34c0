"""Argument checks shared by the ops: every message names op and argument, what is needed and what was got.

    check = Arguments("wkv5")
    check.tensor("r", r, "B T H N")     # binds B, T, H, N
    check.tensor("u", u, "H N")         # must agree with them
    check.same_dtype("r", "k", "v")
    check.same_device()

A shape is written as names separated by blanks. A name is bound by the first tensor that shows it and must agree
afterwards; a number must be met exactly; `...` (first) stands for any leading dimensions. The checks read metadata
only (no device synchronisation) and can be traced by `torch.compile`; checks that must read values are done where
the values are used (`sequence_bounds`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{value!r} ({type(value).__name__})"


class Arguments:
    """Checks the arguments of one call of op `op`; see the module's text."""

    def __init__(self, op: str):
        self.op = op
        self.sizes: dict[str, Any] = {}
        self.tensors: dict[str, torch.Tensor] = {}

    def fail(self, name: str, needed: str, got: str, error: type[Exception] = ValueError) -> NoReturn:
        raise error(f"tkpy.{self.op}: argument '{name}' must be {needed}, got {got}")

    def that(self, condition: bool, name: str, needed: str, got: object) -> None:
        """Raise ValueError unless `condition`."""
        if not condition:
            self.fail(name, needed, _describe(got))

    def tensor(
        self,
        name: str,
        value: torch.Tensor | None,
        shape: str,
        *,
        dtypes: Sequence[torch.dtype] = FLOATS,
        optional: bool = False,
    ) -> None:
        """A strided tensor of one of `dtypes` with the given shape; None only if `optional`."""
        if value is None and optional:
            return
        if not isinstance(value, torch.Tensor):
            self.fail(name, f"a tensor of shape ({shape.replace(' ', ', ')})", _describe(value), TypeError)
        if value.dtype not in dtypes:
            names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            self.fail(name, f"a tensor of dtype {names}", _describe(value), TypeError)
        if value.layout != torch.strided:
            self.fail(name, "a dense (strided) tensor", f"layout {value.layout}", TypeError)
        dims, sizes = shape.split(), value.shape
        free = bool(dims) and dims[0] == "..."
        if free:
            dims = dims[1:]
            sizes = sizes[max(0, len(sizes) - len(dims)) :]
        if len(sizes) != len(dims):
            self._wrong_shape(name, value, dims, free)
        for dim, size in zip(dims, sizes, strict=True):
            if dim not in self.sizes:
                self.sizes[dim] = int(dim) if dim.isdigit() else size
            if size != self.sizes[dim]:
                self._wrong_shape(name, value, dims, free)
        self.tensors[name] = value

    def _wrong_shape(self, name: str, value: torch.Tensor, dims: list[str], free: bool) -> NoReturn:
        shape = ", ".join((["..."] if free else []) + dims)
        known = ", ".join(f"{d} = {self.sizes[d]}" for d in dims if d in self.sizes)
        needed = f"a tensor of rank {'>= ' if free else ''}{len(dims)} and shape ({shape})"
        self.fail(name, needed + (f" with {known}" if known else ""), f"shape {tuple(value.shape)}")

    def same_dtype(self, *names: str) -> None:
        """All the named tensors that were given have one dtype."""
        given = [n for n in names if n in self.tensors]
        for name in given[1:]:
            if self.tensors[name].dtype != self.tensors[given[0]].dtype:
                self.fail(
                    name,
                    f"of the dtype of '{given[0]}' ({self.tensors[given[0]].dtype})",
                    str(self.tensors[name].dtype),
                    TypeError,
                )

    def same_device(self) -> None:
        """All tensors checked so far are on one device."""
        first: tuple[str, torch.device] | None = None
        for name, value in self.tensors.items():
            if first is None:
                first = (name, value.device)
            elif value.device != first[1]:
                self.fail(name, f"on the device of '{first[0]}' ({first[1]})", str(value.device))

    def number(self, name: str, value: object, *, minimum: float | None = None, above: float | None = None) -> None:
        """A finite real number (not bool), at least `minimum`, above `above`."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(name, "a real number", _describe(value), TypeError)
        if isinstance(value, float) and not abs(value) < math.inf:  # NaN too
            self.fail(name, "a finite number", _describe(value))
        if minimum is not None and value < minimum:
            self.fail(name, f"at least {minimum:g}", _describe(value))
        if above is not None and value <= above:
            self.fail(name, f"greater than {above:g}", _describe(value))

    def integer(self, name: str, value: object, *, minimum: int | None = None, optional: bool = False) -> None:
        """An int (not bool), at least `minimum`; None only if `optional`."""
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            self.fail(name, "an integer", _describe(value), TypeError)
        if minimum is not None and value < minimum:
            self.fail(name, f"at least {minimum}", _describe(value))

    def flag(self, name: str, value: object) -> None:
        """A bool."""
        if not isinstance(value, bool):
            self.fail(name, "True or False", _describe(value), TypeError)

    def choice(self, name: str, value: object, choices: Iterable[object]) -> None:
        """One of `choices`."""
        options = list(choices)
        if not any(value is c or (type(value) is type(c) and value == c) for c in options):
            kind = ValueError if any(type(value) is type(c) for c in options) else TypeError
            self.fail(name, "one of " + ", ".join(repr(c) for c in options), _describe(value), kind)


def autocast_enabled(device: torch.device) -> bool:
    """Whether `torch.autocast` is on for this device (never for devices it does not know, such as meta)."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def autocast(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """Under `torch.autocast`, the floating tensors cast to the autocast dtype, as torch's own matmuls do.

    float64 tensors and everything that is not a tensor pass unchanged, as does all outside autocast.
    """
    device = next((t.device for t in tensors if isinstance(t, torch.Tensor)), None)
    if device is None or not autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device.type)
    low = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(dtype) if isinstance(t, torch.Tensor) and t.dtype in low else t for t in tensors)


def sequence_bounds(op: str, name: str, cu_seqlens: torch.Tensor, total: int) -> list[int]:
    """The values of a `cu_seqlens` tensor, checked: starts at 0, never decreases, ends at `total`.

    Reads the tensor (a device synchronisation on CUDA); called inside op implementations, never while tracing.
    """
    bounds = [int(b) for b in cu_seqlens.tolist()]
    check = Arguments(op)
    check.that(len(bounds) >= 1 and bounds[0] == 0, name, "offsets that begin with 0", bounds[:8])
    for i in range(1, len(bounds)):
        check.that(bounds[i] >= bounds[i - 1], name, "offsets that never decrease", bounds[max(0, i - 3) : i + 1])
    check.that(bounds[-1] == total, name, f"offsets that end at the total length {total}", bounds[-1])
    return bounds
