"""Shared artefacts: kernels by the build's own script, cached by content; a host program."""

from __future__ import annotations

import importlib.util
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
def machine_program(host_program, emulator_library):
    """The programs of machine_main.cpp, linked with the emulator's library."""
    return host_program("machine", *MACHINE, flags=(f"-I{ROOT / 'csrc/emulator'}", "-pthread", *emulator_library))
