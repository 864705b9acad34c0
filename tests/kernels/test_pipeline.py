"""The build pipeline: what the script makes and says, how the build drives it, and where nvcc may come from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_cases import CACHE, ROOT

from tkpy import build_info

SCRIPT = ROOT / "cmake" / "compile_kernel.py"
LEVEL1 = ROOT / "csrc/examples/level1_copy_tile.cu"
WITHOUT_NVCC = "/usr/bin:/bin"

# cmake and ninja as Python packages lie beside the interpreter, which need not be on PATH.
TOOLS = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
CMAKE, NINJA = shutil.which("cmake", path=TOOLS), shutil.which("ninja", path=TOOLS)

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


def test_names_of_modules(compile_kernel, tmp_path):
    kernels = tmp_path / "kernels"
    sources = [
        kernels / "gemm/kernel.cu",
        kernels / "gemm/small.cu",
        tmp_path / "examples/level1.cu",
        tmp_path / "microbench/alu.cu",
    ]
    assert compile_kernel.module_names(sources) == ["gemm", "gemm_small", "level1", "microbench_alu"]
    done = run_script("--names", *sources, kernels / "gemm_small/kernel.cu")
    assert done.returncode == 1
    assert "two sources would make the module gemm_small: " in done.stderr


@pytest.mark.parametrize("change", ["source", "header", "flags", "file"])
def test_what_the_build_made_serves_the_tests_while_it_is_current(compile_kernel, toolchain, tmp_path, change):
    source, header, built = tmp_path / "tiny.cu", tmp_path / "tiny.h", tmp_path / "built"
    header.write_text("constexpr int tiny_value = 1;")
    source.write_text('#include "tiny.h"\n' + TINY.format(name="tiny"))
    compile_kernel.compile_kernel(source, "tiny", built, toolchain)
    arguments = (source, "tiny", tmp_path / "cache", toolchain)
    assert compile_kernel.compile_cached(*arguments, built=built) == built
    if change == "file":
        (built / "tiny.cubin").unlink()
    elif change != "flags":
        path = source if change == "source" else header
        path.write_text(path.read_text() + "\n")
    assert not compile_kernel.is_current(built, "tiny", source, toolchain, ("-DX",) if change == "flags" else ())


def test_what_another_build_made_is_brought_over_while_it_is_current(compile_kernel, toolchain, tmp_path, monkeypatch):
    source, header, built, out = (tmp_path / name for name in ("tiny.cu", "tiny.h", "built", "out"))
    header.write_text("constexpr int tiny_value = 1;")
    source.write_text('#include "tiny.h"\n' + TINY.format(name="tiny"))
    report = compile_kernel.compile_kernel(source, "tiny", built, toolchain)
    arguments = (source, "tiny", out, toolchain)
    assert compile_kernel.reuse(*arguments) is None
    monkeypatch.setenv("TKPY_BUILT_KERNELS", str(built))
    assert compile_kernel.reuse(*arguments, depfile=tmp_path / "d") == report
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {p.name: p.read_bytes() for p in built.iterdir()}
    target, _, needed = (tmp_path / "d").read_text().partition(": ")
    assert target == str(out / "tiny.json")
    assert needed.split() == [str(source), str(header)]
    header.write_text("constexpr int tiny_value = 2;")
    assert compile_kernel.reuse(*arguments) is None


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
include("{ROOT}/cmake/kernels.cmake")
"""
TINY = 'extern "C" __global__ void {name}(int* out) {{ out[threadIdx.x] = {name}_value; }}'


def cmake(folder: Path, *arguments: str, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "CUDA_HOME"}
    environment = {**clean, "PATH": TOOLS, **environment}
    done = subprocess.run([CMAKE, *arguments], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not (CMAKE and NINJA), reason="needs cmake and ninja")
class TestBuild:
    def configure(self, folder: Path, *sources: Path, **environment: str) -> str:
        (folder / "CMakeLists.txt").write_text(PROJECT)
        chosen = ";".join(map(str, sources or [LEVEL1]))
        defines = [f"-DPython_EXECUTABLE={sys.executable}", f"-DTKPY_KERNEL_SOURCES={chosen}"]
        return cmake(folder, "-G", "Ninja", "-B", "b", *defines, **environment)

    def test_it_builds_installs_and_is_incremental(self, toolchain, tmp_path):
        self.configure(tmp_path)
        assert "kernel level1_copy_tile" in cmake(tmp_path, "--build", "b")
        assert "no work to do" in cmake(tmp_path, "--build", "b")
        depends = (tmp_path / "b" / "level1_copy_tile.kernel.d").read_text()
        assert "tk/layout.h" in depends, "a changed header rebuilds the kernel"
        cmake(tmp_path, "--install", "b", "--prefix", "i", "--component", "kernels")
        made = {path.name for path in (tmp_path / "i/tkpy/kernels").iterdir()}
        assert made == {"toolchain.json", *(f"level1_copy_tile.{end}" for end in ("ptx", "cubin", "json"))}

    def test_a_folder_may_hold_several_modules(self, toolchain, tmp_path):
        """kernel.cu has the folder's name, other files add theirs; a header concerns only who includes it."""
        op = tmp_path / "kernels" / "scan"
        op.mkdir(parents=True)
        (op / "params.h").write_text("constexpr int scan_value = 3;")
        (op / "kernel.cu").write_text('#include "params.h"\n' + TINY.format(name="scan"))
        (op / "backward.cu").write_text("constexpr int back_value = 4;" + TINY.format(name="back"))
        self.configure(tmp_path, op / "kernel.cu", op / "backward.cu")
        said = cmake(tmp_path, "--build", "b")
        assert "kernel scan\n" in said
        assert "kernel scan_backward\n" in said
        reports = build_info.reports(tmp_path / "b/tkpy/kernels")
        assert {name: list(report["kernels"]) for name, report in reports.items()} == {
            "scan": ["scan"],
            "scan_backward": ["back"],
        }
        (op / "params.h").write_text("constexpr int scan_value = 5;")
        said = cmake(tmp_path, "--build", "b")
        assert "kernel scan\n" in said
        assert "kernel scan_backward\n" not in said

    @needs_bare_path
    def test_without_nvcc_configuration_succeeds_and_records_why(self, tmp_path):
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in (CMAKE, NINJA):
            (tools / Path(tool).name).symlink_to(tool)
        said = self.configure(tmp_path, PATH=f"{tools}:{WITHOUT_NVCC}")
        if "python packages" in said:
            pytest.skip("this environment has nvcc as Python packages")
        assert "not built: nvcc not found" in said
        cmake(tmp_path, "--build", "b")
        cmake(tmp_path, "--install", "b", "--prefix", "i", "--component", "kernels")
        assert [path.name for path in (tmp_path / "i/tkpy/kernels").iterdir()] == ["toolchain.json"]
        assert json.loads((tmp_path / "i/tkpy/kernels/toolchain.json").read_text()) == {"reason": "nvcc not found"}


class TestPackages:
    """nvcc as the Python packages lay it out, by scripts that only tell their version."""

    PARTS = ("bin/nvcc", "bin/ptxas", "nvvm/bin/cicc", "include/cuda_runtime.h", "include/crt/host_defines.h")

    def layout(self, site: Path, release: str = "13.0, V13.0.88") -> Path:
        for part in self.PARTS:
            path = site / "nvidia/cu13" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}'\n")
            path.chmod(0o755)
        return site

    def find(self, site: Path) -> dict:
        return json.loads(run_script("--toolchain", PATH=WITHOUT_NVCC, PYTHONPATH=str(site)).stdout)

    @needs_bare_path
    def test_they_are_found(self, tmp_path):
        found = self.find(self.layout(tmp_path))
        assert found["origin"] == "python packages"
        assert found["version"] == "13.0.88"
        assert found["nvcc"] == str(tmp_path / "nvidia/cu13/bin/nvcc")
        assert found["ptxas"] == str(tmp_path / "nvidia/cu13/bin/ptxas")

    @needs_bare_path
    @pytest.mark.parametrize("part, package", [
        ("bin/ptxas", "nvidia-cuda-nvcc"), ("nvvm/bin/cicc", "nvidia-nvvm"),
        ("include/cuda_runtime.h", "nvidia-cuda-runtime"), ("include/crt/host_defines.h", "nvidia-cuda-crt"),
    ])  # fmt: skip
    def test_an_incomplete_set_is_not_taken_and_says_what_lacks(self, tmp_path, part, package):
        (self.layout(tmp_path) / "nvidia/cu13" / part).unlink()
        found = self.find(tmp_path)
        if "origin" in found:
            assert not found["nvcc"].startswith(str(tmp_path))
        else:
            assert found == {
                "reason": f"nvcc not found (the Python package {package} is missing beside nvidia-cuda-nvcc)"
            }

    def test_a_build_in_isolation_looks_into_the_environment_too(self, compile_kernel, monkeypatch, tmp_path):
        """pip hides the environment's packages from a build in isolation, but not where they lie."""
        site = self.layout(tmp_path / "site")
        monkeypatch.setattr(compile_kernel.sysconfig, "get_path", lambda name: str(site))
        monkeypatch.setattr(compile_kernel.sys, "path", [])
        monkeypatch.setenv("PATH", WITHOUT_NVCC)
        monkeypatch.delenv("CUDA_HOME", raising=False)
        assert site / "nvidia" in compile_kernel._package_folders("nvidia")


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
