"""Sweeps over instantiations of one header: its text and a list of kernels become one source, compiled once."""

import json
from pathlib import Path
from typing import Any

import torch
from kernel_cases import CACHE, ROOT

TORCH = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "float": torch.float32,
    "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8, "uint8": torch.uint8,
    "int": torch.int32,
}  # fmt: skip
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def compile_sweep(compile_kernel, toolchain, name: str, kernels: list[str]) -> Path:
    """tests/kernels/<name>.cuh with `kernels` appended; the folder of its compiled form."""
    CACHE.mkdir(parents=True, exist_ok=True)
    source = CACHE / f"{name}.cu"
    text = (ROOT / f"tests/kernels/{name}.cuh").read_text() + "\n".join(kernels) + "\n"
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    return compile_kernel.compile_cached(source, name, CACHE, toolchain)


def uses_no_local_memory(folder: Path, name: str) -> dict[str, Any]:
    """Asserts it of every kernel of the module, and returns the module's report."""
    report: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert not report["warnings"]
    for kernel, facts in report["kernels"].items():
        assert facts["stack"] == facts["spill_stores"] == facts["spill_loads"] == 0, kernel
        assert not {"LDL", "STL"} & set(facts["sass"] or ()), kernel
    return report


def values(kind: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """Finite numbers that the type holds exactly, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    if kind in ("int", "int8", "uint8"):
        return torch.randint(1, 120, shape, generator=generator).to(TORCH[kind])
    x = torch.randn(shape, generator=generator).to(TORCH[kind])
    x = torch.where(x.float() == 0, torch.ones_like(x.float()), x.float()).to(TORCH[kind])
    if kind == "tf32":  # 10 bits of mantissa
        x = (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return x


def bits(x: torch.Tensor) -> torch.Tensor:
    """For comparing: equal bits are equal, whatever they mean."""
    return x.contiguous().view(BITS[x.element_size()])
