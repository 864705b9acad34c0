"""Builds csrc/emulator/tensor and its test bindings into a module once per content, with the host compiler alone."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SOURCES = ROOT / "csrc" / "emulator" / "tensor"
WARNINGS = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden"]


def _hash(paths: list[Path], words: list[str]) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(command: list[str], output: Path) -> None:
    partial = output.with_suffix(".partial")
    result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-6000:]}")
    partial.replace(output)


def build(cache: Path) -> Path:
    import pybind11

    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}", f"-I{ROOT / 'csrc'}"]
    headers = sorted([*SOURCES.glob("*.h"), ROOT / "csrc" / "emulator" / "common.h"])
    units = [(path, [*WARNINGS, "-O2"]) for path in sorted(SOURCES.glob("*.cpp"))]
    units += [(path, [*WARNINGS, "-O0"]) for path in [ROOT / "csrc/emulator/common.cpp", HERE / "bindings.cpp"]]
    objects = []
    for path, flags in units:
        command = [compiler, *flags, *include, "-c", str(path)]
        target = cache / f"{path.stem}-{_hash([*headers, path], command)}.o"
        if not target.exists():
            _compile(command, target)
        objects.append(str(target))
    library = cache / f"tensor_native-{_hash([], objects)}.so"
    if not library.exists():
        _compile([compiler, "-shared", *objects], library)
    return library


@pytest.fixture(scope="session")
def native(request: pytest.FixtureRequest) -> ModuleType:
    cache = Path(request.config.cache.mkdir("tensor_native"))
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = build(cache)
    loader = importlib.machinery.ExtensionFileLoader("tensor_native", str(library))
    spec = importlib.util.spec_from_loader("tensor_native", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
