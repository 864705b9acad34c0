"""tkpy: Hopper tile kernels that anyone can test, drop-in torch ops on them, and long-sequence architectures.

import tkpy
y = tkpy.rms_norm(x, weight)              # every op also takes backend=
tkpy.explain(tkpy.rms_norm, x, weight)    # which backends can serve this call, and why the others cannot
"""

from __future__ import annotations

from typing import Any

from tkpy import ops
from tkpy.errors import InternalError, Refusal, Unsupported
from tkpy.registry import (
    BACKENDS,
    Dispatch,
    Explanation,
    explain,
    last_dispatch,
    record_dispatches,
    support_matrix,
    use_backend,
)

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "Dispatch",
    "Explanation",
    "InternalError",
    "Refusal",
    "Unsupported",
    "explain",
    "last_dispatch",
    "ops",
    "record_dispatches",
    "support_matrix",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in ops.__dict__ and not name.startswith("_"):
        return getattr(ops, name)
    raise AttributeError(f"module 'tkpy' has no attribute {name!r}")
