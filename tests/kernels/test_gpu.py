"""The GEMM on a real sm_90 through the driver: `pytest -m gpu tests/kernels`. The emulator runs the same programs."""

import subprocess

import pytest
from kernel_cases import GEMMS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def run(machine_program):
    def call(scenario: str, folder: object, *arguments: object) -> list[str]:
        command = [machine_program, "cuda", scenario, str(folder), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        if done.stdout.startswith("unavailable"):
            pytest.skip(done.stdout.strip())
        return done.stdout.splitlines()

    return call


@pytest.mark.parametrize("case", GEMMS, ids=lambda case: "x".join(map(str, case)))
def test_gemm_is_right_on_the_device(run, kernel_folder, case):
    lines = run("gemm", kernel_folder("kernels/gemm/kernel.cu"), *case)
    assert not lines[-1].startswith("error:"), lines
    error, guards = lines[-1].split()[1::2]
    assert float(error) < 4e-3
    assert guards == "1"


@pytest.mark.parametrize("size", [1024, 4096, 8192])
def test_gemm_speed_is_printed(run, kernel_folder, size):
    line = run("speed", kernel_folder("kernels/gemm/kernel.cu"), size, size, size, 0, 1, 0, "none", 0)[-1]
    print(f"gemm {size}: {line}")
    assert float(line.split()[3]) > 0
