"""What a seeded fault is: a correct program and edits of it, each of exactly one place of the text, or of one argument.

All variants of a program are compiled together, as kernels of one file: the correct one is `k0`, fault i is `k<i>`.
The programs are in the modules named twins_*; each lists its own in `PROGRAMS`, and the test finds the modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PRELUDE = (Path(__file__).parent / "prelude.cuh").read_text()
HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"
RESULT = "result"  # no finding: the emulator shows this fault by a wrong result


@dataclass(frozen=True)
class Fault:
    name: str
    code: str
    before: str = ""
    after: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # to the program's `launch`


@dataclass(frozen=True)
class Program:
    name: str
    source: str  # one kernel, named `k`
    launch: Callable[..., tuple[dict[str, Any], np.ndarray, np.ndarray]]  # -> launch arguments, output, expected output
    faults: tuple[Fault, ...]
    is_ptx: bool = False

    def text(self) -> str:
        """Every variant, each in a namespace of its own."""
        parts = [HEADER if self.is_ptx else PRELUDE]
        for i in range(len(self.faults) + 1):
            body = self.source
            if i and self.faults[i - 1].before:
                fault = self.faults[i - 1]
                assert body.count(fault.before) == 1, f"{fault.name}: must change exactly one place"
                body = body.replace(fault.before, fault.after)
            assert body.count(" k(") == 1
            body = body.replace(" k(", f" k{i}(")
            parts.append(body if self.is_ptx else f"namespace v{i} {{\n{body}\n}}")
        return "\n".join(parts)


def aligned(a: np.ndarray) -> np.ndarray:
    """A copy that starts on a 1024-byte boundary; cudaMalloc's memory starts on one of 256."""
    room = np.empty(a.nbytes + 1024, np.uint8)
    start = -room.ctypes.data % 1024
    out = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def ramp(n: int) -> np.ndarray:
    return aligned((np.arange(n) * 7 % 61).astype(np.float32))
