"""The three kinds of error, kept apart.

* `ValueError` / `TypeError`: the caller's arguments are wrong (raised by `tkpy.arguments`).
* `Unsupported`: the arguments are right, but no backend that may be used can serve them here.
* `InternalError`: tkpy itself is wrong; please report it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """One reason why a backend cannot serve a call.

    `code` is a stable identifier (`not_built`, `needs_gpu`, `dtype`, ...); `message` says what is needed and what
    was got.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Unsupported(RuntimeError):
    """No permitted backend can serve this call. `refusals` maps each backend asked to its reasons."""

    def __init__(self, op: str, refusals: Mapping[str, Sequence[Refusal]]):
        self.op = op
        self.refusals = {backend: tuple(reasons) for backend, reasons in refusals.items()}
        lines = [f"  {backend}: {reason}" for backend, reasons in self.refusals.items() for reason in reasons]
        super().__init__(f"tkpy.{op}: no backend can serve this call\n" + "\n".join(lines))

    def __reduce__(self) -> tuple[type[Unsupported], tuple[str, Mapping[str, Sequence[Refusal]]]]:
        """From one process to another: by default an exception is made again of its text alone."""
        return type(self), (self.op, self.refusals)


class InternalError(RuntimeError):
    """A broken promise inside tkpy (never the caller's fault)."""
