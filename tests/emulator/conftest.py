"""CUDA programs compiled by nvcc once per test session."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable

import pytest
from emulator_harness import find_nvcc

import tkpy.emulator
from tkpy.emulator import Module


@pytest.fixture(scope="session")
def compile_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Module]:
    """Compiles CUDA C++ to PTX and loads it; the same source is compiled once, also across worker processes."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc not found (CUDA_HOME, PATH): CUDA programs cannot be compiled")
    root = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent
    cache = root / "ptx"
    cache.mkdir(exist_ok=True)
    loaded: dict[str, Module] = {}

    def compile_source(source: str, *flags: str) -> Module:
        key = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:24]
        if key not in loaded:
            ptx = cache / f"{key}.ptx"
            if not ptx.exists():
                cu = cache / f"{key}.{os.getpid()}.cu"
                cu.write_text(source)
                part = cu.with_suffix(".ptx")
                command = [nvcc, "-ptx", "-gencode=arch=compute_90a,code=compute_90a", "-lineinfo", "-std=c++17",
                           *flags, str(cu), "-o", str(part)]  # fmt: skip
                # A preloaded sanitizer is for the emulator, not for the compiler.
                env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
                assert done.returncode == 0, done.stderr
                part.rename(ptx)
            loaded[key] = tkpy.emulator.load(ptx)
        return loaded[key]

    return compile_source
