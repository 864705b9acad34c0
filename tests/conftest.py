"""Shared by all tests: `gpu` tests are skipped where there is no CUDA device; freshly allocated memory holds NaN; host
programs are compiled once, by content."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from gpu_guard import GpuGuard

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "test_cache"


def pytest_configure(config):
    if torch.cuda.is_available():
        config.pluginmanager.register(GpuGuard(torch.cuda.synchronize))


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` returns NaN (and extreme integers), so that an entry nobody wrote cannot pass for a result."""
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])


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
def emulator_library():
    """Flags that link all of libemulator.a into a host program."""
    places = [os.environ.get("TKPY_EMULATOR_LIBRARY"), *map(str, sorted((ROOT / "build").glob("**/libemulator.a")))]
    library = next((place for place in places if place and os.path.exists(place)), None)
    if library is None:
        pytest.skip("no libemulator.a: build it, or set TKPY_EMULATOR_LIBRARY")
    stamp = f"-DEMULATOR_STAMP={os.stat(library).st_mtime_ns}"  # a new library, a new program
    return (stamp, "-Wl,--push-state,--whole-archive", library, "-Wl,--pop-state")
