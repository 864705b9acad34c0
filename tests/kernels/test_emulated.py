"""The emulator as a Machine, and the GEMM run by it.

Needs the emulator as a library: TKPY_EMULATOR_LIBRARY, or libemulator.a below build/."""

import os
import subprocess

import pytest
from kernel_cases import CACHE, GEMMS

SCALE = """
struct Params { const float* x; float* y; float factor; int n; };
extern "C" __global__ void scale(const __grid_constant__ Params p) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  if (i < p.n) p.y[i] = p.factor * p.x[i];
}
"""


@pytest.fixture(scope="module")
def run(machine_program):
    def call(scenario: str, folder: object, *arguments: object, **environment: str) -> list[str]:
        done = subprocess.run(
            [machine_program, "emulator", scenario, str(folder), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout.splitlines()

    return call


@pytest.fixture(scope="module")
def scale(compile_kernel, toolchain):
    source = CACHE / "scale.cu"
    CACHE.mkdir(parents=True, exist_ok=True)
    source.write_text(SCALE)
    return compile_kernel.compile_cached(source, "scale", CACHE, toolchain)


def test_a_kernel_runs_through_the_machine(run, scale):
    assert run("scale", scale, 100) == ["wrong 0"]


def test_findings_become_errors_that_name_kernel_and_place(run, scale):
    text = "\n".join(run("scale", scale, 99))  # the view is one element short
    assert text.startswith("error: kernel scale, grid (4, 1, 1), block (32, 1, 1)")
    assert "out-of-bounds" in text
    assert "scale.cu:5" in text


def test_misuse_is_refused_in_words(run, scale):
    words = [
        "module scale has no kernel absent",
        "absent.ptx: no such kernel image",
        "24 bytes of parameters, got 8",
        "multiple of the cluster",
        "1 to 1024 threads",
        "bytes of shared memory",
        "module broken: line 1",
    ]
    lines = run("misuse", scale)
    assert len(lines) == len(words)
    for word, line in zip(words, lines, strict=True):
        assert word in line


@pytest.mark.parametrize("case", GEMMS, ids=lambda case: "x".join(map(str, case)))
@pytest.mark.parametrize("seed", [0, 1])
def test_gemm_is_right_and_clean(run, kernel_folder, case, seed):
    lines = run("gemm", kernel_folder("kernels/gemm/kernel.cu"), *case, SEED=str(seed))
    assert not lines[-1].startswith("error:"), lines
    error, guards = lines[-1].split()[1::2]
    print(lines)
    assert float(error) < 4e-3  # one rounding to bf16: at most 2^-9 per element
    assert guards == "1"
