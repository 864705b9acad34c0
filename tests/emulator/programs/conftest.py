"""Where the programs run: in the emulator under several seeds, on a GPU, and through a libcuda that the emulator stands in for.

`pytest -m gpu tests/emulator/programs` runs them on a real sm_90: each launch is emulated first, then made by the driver
from the same PTX, and what it leaves in memory is compared with what the emulator left: bit for bit, or within the bound
that the program states where the ISA leaves room. The arrays then hold the emulator's results, which the program compares
with numpy at its own, tighter tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_device import Device
from two_machines import Runner, as_it_is, assembled

from tkpy.emulator import Module

SEEDS = 6
PLACES = [
    *(pytest.param(("emulator", seed), id=f"seed{seed}") for seed in range(SEEDS)),
    pytest.param(("emulated driver", 0), id="driver"),
    pytest.param(("gpu", 0), id="gpu", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="session")
def emulated_driver(host_program: Callable[..., Path], emulator_library: tuple[str, ...]) -> Device:
    flags = ("-shared", "-fPIC", "-pthread", "-Icsrc/emulator", *emulator_library)
    return Device(str(host_program("libemulated_cuda.so", "tests/emulator/programs/emulated_cuda.cpp", flags=flags)))


@pytest.fixture(scope="session")
def gpu() -> Device:
    device = Device()
    if device.capability != (9, 0):
        pytest.skip(f"needs compute capability 9.0, got {device.capability}")
    return device


@pytest.fixture(params=PLACES)
def runner(request: pytest.FixtureRequest, compile_cuda: Callable[..., Module]) -> Runner:
    place, seed = request.param
    if place == "emulator":
        return Runner(compile_cuda, seed, None, as_it_is)
    if place == "gpu":
        return Runner(compile_cuda, seed, request.getfixturevalue("gpu"), assembled)
    return Runner(compile_cuda, seed, request.getfixturevalue("emulated_driver"), as_it_is)
