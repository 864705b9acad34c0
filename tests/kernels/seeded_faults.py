"""Kernels with seeded faults: all of them through one run of nvcc, each as a module of its own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kernel_cases import CACHE, ROOT


@dataclass(frozen=True)
class Fault:
    """`old` in a kernel's source replaced by `new`; `kernel`: the instantiation that shows it."""

    what: str
    old: str
    new: str
    kernel: str = "64_plain"

    def __str__(self) -> str:
        return self.what


def compiled(compile_kernel, toolchain, scratch: Path, name: str, kernels: str) -> str:
    """The PTX of `kernels`, each fault an entry of its own: no ptxas, and no nvcc where nothing has changed."""
    whole = '#include "tk/tk.cuh"\n' + kernels
    key = hashlib.sha256((toolchain.version + whole).encode())
    for header in sorted((ROOT / "csrc/tk").iterdir()):
        key.update(header.read_bytes())
    ptx = CACHE / f"{name}-{key.hexdigest()[:16]}.ptx"
    if not ptx.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        path, made = scratch / f"{name}.cu", scratch / f"{name}.ptx"
        path.write_text(whole)
        command = [toolchain.nvcc, *compile_kernel.NVCC_FLAGS, f"-I{ROOT / 'csrc'}", path, "-o", made]
        subprocess.run(list(map(str, command)), check=True)
        shutil.copy(made, ptx.with_suffix(".part"))
        os.replace(ptx.with_suffix(".part"), ptx)
    return ptx.read_text()


def module(text: str, names: dict[str, str]) -> str:
    """The module with the entries of some faults, each under the name that the launcher asks for."""
    head, *entries = text.split(".visible .entry ")
    tail = entries[-1][entries[-1].rindex("\n}\n") + 3 :]  # .file, .section
    made = head
    for seeded, name in names.items():
        (entry,) = [e for e in entries if e.startswith(f"{seeded}(")]
        body = entry[: entry.rindex("\n}\n") + 3]
        made += ".visible .entry " + re.sub(rf"\b{seeded}(?=\(|_param)", name, body)
    return made + tail


def write_module(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name}.ptx"
    path.unlink(missing_ok=True)  # it may be a link to the right one
    path.write_text(text)
    path.with_suffix(".cubin").write_text("")
    path.with_suffix(".json").write_text("{}")
