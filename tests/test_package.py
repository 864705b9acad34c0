"""The built package, away from this folder: what an ordinary `pip install .` puts on disk is complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # one process builds it

ROOT = Path(__file__).resolve().parent.parent

USE = """
import pathlib, torch, tkpy, tkpy.models, tkpy.nn
from tkpy.demo import genome
folder = pathlib.Path(tkpy.__file__).resolve().parent.parent
assert str(folder) == {folder!r}, folder
assert pathlib.Path(tkpy.models.__file__).resolve().parent == folder / "tkpy" / "models"
assert len(genome()) == 48502
assert len(tkpy.registry.ops()) == {ops}
from tkpy import published
from tkpy.bench.spec import discover
assert published.figures() and list(discover())
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
    fresh = {key: value for key, value in os.environ.items() if key != "TKPY_BUILD_DIR"}  # it belongs to ROOT
    fresh["TKPY_BUILT_KERNELS"] = str(ROOT / "tkpy/kernels")  # those that are of these very sources
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=fresh)
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


def test_a_wheel_holds_its_kernels_or_the_reason(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    kernels = tmp_path / "tkpy" / "kernels"
    made = {path.name for path in kernels.iterdir()}
    if "reason" in json.loads((kernels / "toolchain.json").read_text()):
        assert made == {"toolchain.json"}
    else:
        assert {f"gemm.{end}" for end in ("ptx.gz", "cubin.gz", "json")} <= made
        assert sum(path.stat().st_size for path in kernels.iterdir()) < 45e6
    use = """
import torch, tkpy
x = torch.eye(16, dtype=torch.float16)
try:
    assert torch.equal(tkpy.linear(x, x, backend="emulator"), x)
except tkpy.Unsupported as refused:
    assert [r.code for r in refused.refusals["emulator"]] == ["not_built"]
    print("not_built")
"""
    done = subprocess.run(
        [sys.executable, "-c", use],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("not_built" in done.stdout) == (made == {"toolchain.json"})


def test_a_wheel_holds_the_licence_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "bench", "models/"))]
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    for needed in ("torch>=2.10", "triton>=3.6", "einops", "safetensors", "Requires-Python: >=3.11"):
        assert needed in text
