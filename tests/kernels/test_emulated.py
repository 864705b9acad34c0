"""The emulator as a Machine, and the GEMM run by it.

Needs the emulator as a library: TKPY_EMULATOR_LIBRARY, or libemulator.a below build/."""

import os
import subprocess

import pytest
from conftest import CACHE, ROOT

RUNTIME = ("csrc/runtime/machine.cpp", "csrc/runtime/emulator_machine.cpp", "csrc/kernels/gemm/launch.cpp")

SCALE = """
struct Params { const float* x; float* y; float factor; int n; };
extern "C" __global__ void scale(const __grid_constant__ Params p) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  if (i < p.n) p.y[i] = p.factor * p.x[i];
}
"""


@pytest.fixture(scope="module")
def run(host_program):
    places = [os.environ.get("TKPY_EMULATOR_LIBRARY"), *map(str, sorted((ROOT / "build").glob("**/libemulator.a")))]
    library = next((place for place in places if place and os.path.exists(place)), None)
    if library is None:
        pytest.skip("no libemulator.a: build it, or set TKPY_EMULATOR_LIBRARY")
    stamp = f"-DEMULATOR_STAMP={os.stat(library).st_mtime_ns}"  # a new library, a new program
    whole = ("-Wl,--push-state,--whole-archive", library, "-Wl,--pop-state")
    flags = (stamp, f"-I{ROOT / 'csrc/emulator'}", "-pthread", *whole)
    program = host_program("emulated", "tests/kernels/emulated_main.cpp", *RUNTIME, flags=flags)

    def call(scenario: str, folder: object, *arguments: object, **environment: str) -> list[str]:
        done = subprocess.run(
            [program, scenario, str(folder), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        if "unmodelled" in done.stdout:
            pytest.skip(f"the emulator does not model this yet: {done.stdout[-300:]}")
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


GEMMS = [
    # m, k, n, A transposed, B transposed, padding, activation, bias and residual
    (64, 64, 64, 0, 1, 0, "none", 0),
    (130, 200, 264, 0, 0, 0, "gelu", 1),  # tails in every dimension
    (136, 72, 130, 1, 1, 6, "gelu_tanh", 1),
    (136, 72, 136, 1, 0, 0, "silu", 0),
    (1, 320, 300, 0, 1, 0, "relu", 1),  # one row, more steps than stages
    (70, 33, 67, 0, 1, 0, "relu_squared", 1),  # pitches that TMA cannot take
    (33, 70, 131, 1, 0, 0, "none", 1),
    (20, 0, 30, 0, 0, 0, "none", 1),  # an empty sum: the epilogue alone
    (600, 96, 520, 0, 1, 0, "none", 0),  # more tiles than clusters: persistent
]


@pytest.mark.parametrize("case", GEMMS, ids=lambda case: "x".join(map(str, case)))
@pytest.mark.parametrize("seed", [0, 1])
def test_gemm_is_right_and_clean(run, kernel_folder, case, seed):
    lines = run("gemm", kernel_folder("kernels/gemm/kernel.cu"), *case, SEED=str(seed))
    assert not lines[-1].startswith("error"), lines
    error, guards = lines[-1].split()[1::2]
    print(lines)
    assert float(error) < 4e-3  # one rounding to bf16: at most 2^-9 per element
    assert guards == "1"
