"""gpu_guard.py and bench/gpu_tests.py: what the other tests still do when one of them loses the device, or hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

CONFTEST = """
import pytest
from gpu_guard import GpuGuard

class Device:
    lost = False
    def alive(self):
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\\nand more")

device = Device()

@pytest.fixture
def fault():
    def kernel():
        device.lost = True
    return kernel

def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: ")
    config.pluginmanager.register(GpuGuard(device.alive, patience=3))
"""

FAULTS = """
import os, time, pytest
@pytest.mark.gpu
@pytest.mark.parametrize("i", range(8))
def test_one(fault, i):
    if i == 1:
        fault()
    if i == 3:
        time.sleep(60)
    assert i != 5
def test_elsewhere():
    raise RuntimeError("this one is not marked")
"""

ALWAYS = """
import os, pytest
@pytest.mark.gpu
@pytest.mark.parametrize("i", range(6))
def test_always(fault, i):
    os.abort() if i == 1 else fault()
"""

GOOD = """
import pytest
@pytest.mark.gpu
def test_good():
    pass
"""


def folder_of(tmp_path: Path, files: dict[str, str]) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, text in files.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    return tmp_path


def run(folder: Path, *command: object) -> tuple[int, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["PYTHONPATH"] = str(TESTS)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def gpu_tests(tmp_path: Path, **files: str) -> tuple[int, str]:
    folder = folder_of(tmp_path, files)
    return run(folder, TESTS.parent / "bench/gpu_tests.py", folder)


def test_a_loss_and_a_hang_cost_one_test_each(tmp_path):
    status, said = gpu_tests(tmp_path, faults=FAULTS, good=GOOD, none="# no gpu tests here")
    assert status == 1
    assert "test_one[1]: the device is lost: CUDA error: an illegal memory access was encountered" in said
    assert "test_one[3]: no end within 3 s" in said
    assert "time.sleep(60)" in said or "in test_one" in said  # where it hung
    for i in (0, 2, 4, 6, 7):
        assert said.count(f"test_one[{i}] PASSED") == 1
    assert said.count("test_one[5] FAILED") == 1
    assert said.splitlines()[-1] == "2 files with gpu tests, 1 failed: test_faults.py (ended 2 processes)"


def test_a_file_that_always_loses_the_device_is_given_up(tmp_path):
    status, said = gpu_tests(tmp_path, always=ALWAYS)
    assert status == 1
    assert [said.count(f"test_always[{i}] ") > 0 for i in range(6)] == [True] * 3 + [False] * 3
    assert said.splitlines()[-1] == "1 files with gpu tests, 1 failed: test_always.py (ended 3 processes)"


def test_all_is_well(tmp_path):
    status, said = gpu_tests(tmp_path, good=GOOD)
    assert (status, said.splitlines()[-1]) == (0, "1 files with gpu tests, 0 failed: none")


def test_a_file_that_cannot_be_read_fails(tmp_path):
    status, said = gpu_tests(tmp_path, broken="import nothing_of_this_name  # gpu")
    assert status == 1
    assert "ModuleNotFoundError" in said


def test_without_the_runner_the_run_ends_at_the_loss(tmp_path):
    status, said = run(folder_of(tmp_path, {"faults": FAULTS}), "-m", "pytest", "-v", "-m", "gpu", "-p", "no:xdist")
    assert status == 3
    assert "test_one[1]: the device is lost: CUDA error: an illegal memory access" in said
    assert "test_one[2]" not in said


@pytest.mark.parametrize("mark", ["@pytest.mark.gpu", "PLACES", "def test(runner)"])
def test_marks_are_found_through_fixtures_too(mark):
    sys.path.insert(0, str(TESTS.parent / "bench"))
    try:
        from gpu_tests import MENTION
    finally:
        sys.path.pop(0)
    assert MENTION.search(f"# {mark}\n")
