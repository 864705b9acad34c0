"""Shared artefacts: host programs by the C++ compiler, kernels by the build's own script, both cached by content."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from kernel_cases import CACHE, MACHINE, ROOT

from tkpy import build_info


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_kernel", ROOT / "cmake" / "compile_kernel.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_kernel"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compile_kernel() -> ModuleType:
    return _script()


@pytest.fixture(scope="session")
def toolchain(compile_kernel):
    found = compile_kernel.find_toolchain()
    if found is None:
        pytest.skip("nvcc not found")
    return found


@pytest.fixture(scope="session")
def kernel_folder(compile_kernel, toolchain):
    """Source path below csrc/ -> folder with its .ptx, .cubin and .json."""

    def build(source: str) -> Path:
        path = ROOT / "csrc" / source
        name = compile_kernel.module_name(path)
        return compile_kernel.compile_cached(path, name, CACHE, toolchain, built=build_info.KERNELS)

    return build


@pytest.fixture(scope="session")
def host_program():
    """Compiles C++ sources with the warnings of the house as errors; returns the program or library."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")

    def build(name: str, *sources: str, flags: tuple[str, ...] = ()) -> Path:
        files = [ROOT / source for source in sources]
        headers = [*(ROOT / "csrc").glob("*/*.h"), *(ROOT / "csrc/kernels").glob("*/*.h")]
        key = hashlib.sha256(repr((compiler, flags)).encode())
        for path in [*files, *sorted(headers)]:
            key.update(path.read_bytes())
        out = CACHE / f"{name}-{key.hexdigest()[:16]}"
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(CACHE / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of test processes that ask at the same time, one compiles
            if out.exists():
                return out
            part = out.with_suffix(f".{os.getpid()}")
            subprocess.run(
                [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'csrc'}",
                 *flags, *map(str, files), "-o", str(part), "-ldl"],
                check=True,
            )  # fmt: skip
            os.replace(part, out)
        return out

    return build


@pytest.fixture(scope="session")
def machine_program(host_program):
    """The programs of machine_main.cpp, linked with the emulator's library."""
    places = [os.environ.get("TKPY_EMULATOR_LIBRARY"), *map(str, sorted((ROOT / "build").glob("**/libemulator.a")))]
    library = next((place for place in places if place and os.path.exists(place)), None)
    if library is None:
        pytest.skip("no libemulator.a: build it, or set TKPY_EMULATOR_LIBRARY")
    stamp = f"-DEMULATOR_STAMP={os.stat(library).st_mtime_ns}"  # a new library, a new program
    whole = ("-Wl,--push-state,--whole-archive", library, "-Wl,--pop-state")
    return host_program("machine", *MACHINE, flags=(stamp, f"-I{ROOT / 'csrc/emulator'}", "-pthread", *whole))
