"""The built package, away from this folder: what an ordinary `pip install .` puts on disk is complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

USE = """
import pathlib, torch, tkpy, tkpy.models, tkpy.nn
from tkpy.demo import genome
folder = pathlib.Path(tkpy.__file__).resolve().parent.parent
assert str(folder) == {folder!r}, folder
assert pathlib.Path(tkpy.models.__file__).resolve().parent == folder / "tkpy" / "models"
assert len(genome()) == 48502
assert len(tkpy.registry.ops()) == {ops}
print(tkpy.rms_norm(torch.ones(2, 4), torch.ones(4)).sum().item())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "tkpy"
    # From a copy: setuptools would leave build/ here, and pack what an earlier build left in it.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("tkpy-*.whl")
    return built


def test_a_wheel_works_from_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    ops = len([p for p in (ROOT / "tkpy/ops").iterdir() if (p / "op.py").is_file()])
    done = subprocess.run(
        [sys.executable, "-c", USE.format(folder=str(site.resolve()), ops=ops)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(8.0, rel=1e-5)


def test_a_wheel_holds_the_licence_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "bench", "models/"))]
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    for needed in ("torch>=2.10", "triton>=3.6", "einops", "safetensors", "Requires-Python: >=3.11"):
        assert needed in text
