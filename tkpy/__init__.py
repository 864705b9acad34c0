"""tkpy: Hopper tile kernels that anyone can test, drop-in torch ops on them, and long-sequence architectures.

import tkpy
y = tkpy.rms_norm(x, weight)              # every op also takes backend=
tkpy.explain(tkpy.rms_norm, x, weight)    # which backends can serve this call, and why the others cannot
"""

from __future__ import annotations

from typing import Any

from tkpy import ops, registry
from tkpy.errors import InternalError, Refusal, Unsupported
from tkpy.explain_model import explain_model
from tkpy.interop import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    scaled_dot_product_attention,
)
from tkpy.ops.attention import BlockMask
from tkpy.ops.attention_fp8.scales import quantize_blocks
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
    "BlockMask",
    "Dispatch",
    "Explanation",
    "InternalError",
    "Refusal",
    "Unsupported",
    "explain",
    "explain_model",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "last_dispatch",
    "ops",
    "quantize_blocks",
    "record_dispatches",
    "scaled_dot_product_attention",
    "support_matrix",
    "use_backend",
]


globals().update({name: op.public for name, op in registry.ops().items()})


def __getattr__(name: str) -> Any:  # ops added later, and a word to type checkers that names come from folders
    known = registry.ops()
    if name in known:
        return known[name].public
    raise AttributeError(f"module 'tkpy' has no attribute {name!r}")
