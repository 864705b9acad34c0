"""The build pipeline: what the script makes and says, how the build drives it, and where nvcc may come from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_cases import CACHE, ROOT

SCRIPT = ROOT / "cmake" / "compile_kernel.py"
LEVEL1 = ROOT / "csrc/examples/level1_copy_tile.cu"
WITHOUT_NVCC = "/usr/bin:/bin"

needs_bare_path = pytest.mark.skipif(
    shutil.which("nvcc", path=WITHOUT_NVCC) is not None, reason="nvcc lies in /usr/bin here: PATH cannot hide it"
)

SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) spills(float* p) {
  float x[200];
#pragma unroll
  for (int i = 0; i < 200; ++i) x[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 200; ++i) p[(199 - i) * 1024 + threadIdx.x] = x[i] * x[(i * 7) % 200];
}
"""

# A call between two products of one pipeline stage.
CALLING = """
#include <cstdio>
#include "tk/tk.cuh"
using namespace tk;
using Tile = st<bf16, 64, 64>;
extern "C" __global__ void __launch_bounds__(128) calling(float* p) {
  __shared__ Tile a, b;
  rt_fl<16, 64> d;
  zero(d);
  mma_fence();
  mma_AB(d, a, b);
  printf("%f", p[threadIdx.x]);
  mma_AB(d, a, b);
  mma_commit();
  mma_wait();
  store(view<float>{p, 64, 64, 64}, d, 0, 0);
}
"""


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key != "CUDA_HOME"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **environment})


def test_the_three_files_belong_together(kernel_folder, compile_kernel, toolchain):
    folder = kernel_folder("examples/level1_copy_tile.cu")
    ptx = (folder / "level1_copy_tile.ptx").read_text()
    report = json.loads((folder / "level1_copy_tile.json").read_text())
    assert ".target sm_90a" in ptx
    assert "level1_copy_tile.cu" in ptx, "source lines (-lineinfo) are there"
    assert (folder / "level1_copy_tile.cubin").read_bytes()[:4] == b"\x7fELF"
    assert report["nvcc"] == toolchain.version
    facts = report["kernels"]["level1_copy_tile"]
    assert 0 < facts["registers"] <= 255
    assert facts["shared"] == 8200
    if toolchain.cuobjdump:
        assert facts["sass"]["UTMALDG"] == facts["sass"]["UTMASTG"] == 1


def test_spills_and_serialisation_are_reported(compile_kernel, toolchain, tmp_path):
    for name, text in (("spills", SPILLS), ("calling", CALLING)):
        (tmp_path / f"{name}.cu").write_text(text)
    spills = compile_kernel.compile_kernel(tmp_path / "spills.cu", "spills", tmp_path, toolchain)
    facts = spills["kernels"]["spills"]
    assert facts["spill_stores"] > 0
    assert facts["spill_loads"] > 0
    if toolchain.cuobjdump:
        assert facts["sass"]["STL"] > 0
    calling = compile_kernel.compile_kernel(tmp_path / "calling.cu", "calling", tmp_path, toolchain)
    assert calling["wgmma_serialized"]
    assert calling["warnings"]
    assert not spills["wgmma_serialized"]


def test_errors_are_the_compilers_own_words_and_leave_nothing_behind(toolchain, tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void k() { nonsense(); }")
    done = run_script(source, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "broken: nvcc failed" in done.stderr
    assert 'identifier "nonsense" is undefined' in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_ptxas_output_is_read_whole(compile_kernel):
    text = """ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 3 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 8 bytes cmem[2]
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
    entries, warnings = compile_kernel.parse_ptxas(text)
    one = {"stack": 16, "spill_stores": 4, "spill_loads": 8, "registers": 64, "barriers": 3, "shared": 1024}
    two = {"stack": 0, "spill_stores": 0, "spill_loads": 0, "registers": 8, "barriers": 0, "shared": 0}
    assert entries == {"one": one, "two": two}
    assert len(warnings) == 1


def test_tests_compile_once(compile_kernel, toolchain, tmp_path):
    first = compile_kernel.compile_cached(LEVEL1, "level1_copy_tile", tmp_path, toolchain)
    stamp = (first / "level1_copy_tile.json").stat().st_mtime_ns
    assert compile_kernel.compile_cached(LEVEL1, "level1_copy_tile", tmp_path, toolchain) == first
    assert (first / "level1_copy_tile.json").stat().st_mtime_ns == stamp


@needs_bare_path
def test_without_nvcc_the_reason_is_told():
    done = run_script("--toolchain", PATH=WITHOUT_NVCC)
    if json.loads(done.stdout).get("origin") == "python packages":
        pytest.skip("this environment has nvcc as Python packages")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {"reason": "nvcc not found"}
    assert "nvcc not found" in run_script(LEVEL1, PATH=WITHOUT_NVCC).stderr


@needs_bare_path
def test_an_old_nvcc_is_not_taken(tmp_path):
    for tool in ("nvcc", "ptxas"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
        (tmp_path / tool).chmod(0o755)
    found = json.loads(run_script("--toolchain", PATH=f"{tmp_path}:{WITHOUT_NVCC}").stdout)
    assert found.get("origin") != "PATH"


PROJECT = f"""cmake_minimum_required(VERSION 3.20)
project(pipeline NONE)
set(TKPY_KERNEL_SOURCES "{LEVEL1}" CACHE STRING "")
include("{ROOT}/cmake/kernels.cmake")
"""


def cmake(folder: Path, *arguments: str, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "CUDA_HOME"}
    command = ["cmake", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**clean, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("ninja")), reason="needs cmake and ninja")
class TestBuild:
    def configure(self, folder: Path, **environment: str) -> str:
        (folder / "CMakeLists.txt").write_text(PROJECT)
        return cmake(folder, "-G", "Ninja", "-B", "b", f"-DPython_EXECUTABLE={sys.executable}", **environment)

    def test_it_builds_installs_and_is_incremental(self, toolchain, tmp_path):
        self.configure(tmp_path)
        assert "kernel level1_copy_tile" in cmake(tmp_path, "--build", "b")
        assert "no work to do" in cmake(tmp_path, "--build", "b")
        depends = (tmp_path / "b" / "level1_copy_tile.kernel.d").read_text()
        assert "tk/layout.h" in depends, "a changed header rebuilds the kernel"
        cmake(tmp_path, "--install", "b", "--prefix", "i", "--component", "kernels")
        made = {path.name for path in (tmp_path / "i/tkpy/kernels").iterdir()}
        assert made == {"toolchain.json", *(f"level1_copy_tile.{end}" for end in ("ptx", "cubin", "json"))}

    @needs_bare_path
    def test_without_nvcc_configuration_succeeds_and_records_why(self, tmp_path):
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in ("cmake", "ninja"):
            (tools / tool).symlink_to(shutil.which(tool) or "")
        said = self.configure(tmp_path, PATH=f"{tools}:{WITHOUT_NVCC}")
        if "python packages" in said:
            pytest.skip("this environment has nvcc as Python packages")
        assert "not built: nvcc not found" in said
        cmake(tmp_path, "--build", "b")
        cmake(tmp_path, "--install", "b", "--prefix", "i", "--component", "kernels")
        assert [path.name for path in (tmp_path / "i/tkpy/kernels").iterdir()] == ["toolchain.json"]
        assert json.loads((tmp_path / "i/tkpy/kernels/toolchain.json").read_text()) == {"reason": "nvcc not found"}


PACKAGES = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
)


@needs_bare_path
def test_nvcc_from_python_packages_makes_the_same_ptx(tmp_path):
    """About 100 MB, fetched once and kept in the cache."""
    folder = CACHE / "nvcc_packages"
    if not (folder / "complete").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
        try:
            done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip("pip took more than five minutes to fetch the nvcc packages")
        if done.returncode:
            pytest.skip(f"pip cannot get the nvcc packages: {done.stderr.strip().splitlines()[-1:]}")
        (folder / "complete").touch()
    environment = {"PATH": WITHOUT_NVCC, "PYTHONPATH": str(folder)}
    found = json.loads(run_script("--toolchain", **environment).stdout)
    assert found["origin"] == "python packages"
    assert found["nvcc"].startswith(str(folder))
    assert found["ptxas"].startswith(str(folder))
    for source in (LEVEL1, ROOT / "csrc/examples/level3_gemm.cu"):
        done = run_script(source, "--out", tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / f"{source.stem}.json").read_text())
        assert report["nvcc_from"] == "python packages"
        assert not report["wgmma_serialized"]
    assert "wgmma.mma_async" in (tmp_path / "level3_gemm.ptx").read_text()
