"""The driver machine against a fake libcuda that records its calls, and the GEMM's launch code on top of it."""

import os
import subprocess
from pathlib import Path

import pytest

RUNTIME = ("csrc/runtime/machine.cpp", "csrc/runtime/launcher.cpp", "csrc/runtime/driver_machine.cpp",
           "csrc/kernels/gemm/launch.cpp")  # fmt: skip


@pytest.fixture(scope="module")
def fake(host_program):
    return host_program("libfake_cuda.so", "tests/kernels/fake_cuda.cpp", flags=("-shared", "-fPIC"))


@pytest.fixture(scope="module")
def run(host_program, fake):
    program = host_program("runtime", "tests/kernels/runtime_main.cpp", *RUNTIME)

    def call(scenario: str, *arguments: object, library: Path | str = fake, **environment: str) -> list[str]:
        done = subprocess.run(
            [program, scenario, library, *map(str, arguments)],
            capture_output=True, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout.splitlines()

    return call


def test_launch_marshals_everything_and_does_nothing_twice(run):
    launch = "block 384 1 1 shared 100000 stream 5000 device 0 kernel 99 params 0"
    parameters = "parameters 1 bytes 8: 01 00 00 00 04 03 02 01"
    assert run("launch") == [
        "cuInit 0",
        'cuLibraryLoadData "the image" options 0 0',
        "cuLibraryGetKernel entry library 1",
        "cuKernelSetAttribute 8 = 100000 device 0",
        f"cuLaunchKernelEx grid 6 2 1 {launch}", "attribute 4 2 1 1", parameters,
        f"cuLaunchKernelEx grid 6 2 1 {launch}", "attribute 4 2 1 1", parameters,
        # another device: its primary context for this launch only; no cluster, no attribute
        "cuDevicePrimaryCtxRetain 1",
        "cuCtxSetCurrent device 1",
        "cuLaunchKernelEx grid 6 2 1 block 384 1 1 shared 0 stream 5000 device 1 kernel 99 params 0", parameters,
        "cuCtxSetCurrent device 0",
        # a cluster beyond the portable size, under programmatic dependent launch
        "cuKernelSetAttribute 14 = 1 device 0",
        "cuLaunchKernelEx grid 16 1 1 block 384 1 1 shared 0 stream 5000 device 0 kernel 99 params 0",
        "attribute 4 16 1 1", "attribute 6 1 0 0", parameters,
        # all three attributes at once
        "cuLaunchKernelEx grid 16 1 1 block 384 1 1 shared 0 stream 5000 device 0 kernel 99 params 0",
        "attribute 4 16 1 1", "attribute 6 1 0 0", "attribute 2 1 0 0", parameters,
        "cuDeviceGetAttribute 75 device 0", "cuDeviceGetAttribute 76 device 0", "capability 90",
    ]  # fmt: skip


def test_clusters_that_run_at_once_are_asked_once(run):
    asked = "cuOccupancyMaxActiveClusters grid"
    assert run("clusters")[3:] == [
        "cuKernelSetAttribute 8 = 100000 device 0",
        f"{asked} 2 1 1 block 384 shared 100000 device 0 kernel 99 cluster 2", "clusters 15", "clusters 15",
        # another device, and clusters beyond the portable size, which must be allowed
        "cuDevicePrimaryCtxRetain 1", "cuCtxSetCurrent device 1",
        "cuKernelSetAttribute 8 = 100000 device 1", "cuKernelSetAttribute 14 = 1 device 1",
        f"{asked} 16 1 1 block 384 shared 100000 device 1 kernel 99 cluster 16",
        "cuCtxSetCurrent device 0", "clusters 15",
    ]  # fmt: skip
    assert "holds no cluster of this launch: kernel entry, grid (2, 1, 1)" in run("clusters", FAKE_CLUSTERS="0")[-1]
    assert "cuOccupancyMaxActiveClusters failed" in run("clusters", FAKE_FAIL="cuOccupancyMaxActiveClusters=1")[-1]


def test_a_thread_without_context_gets_the_primary_one(run):
    lines = run("launch", FAKE_DEVICE="-1")
    first = lines.index("cuDevicePrimaryCtxRetain 0")
    assert lines[first + 1] == "cuCtxSetCurrent device 0"
    assert "cuCtxSetCurrent device -1" in lines  # and the thread gets back what it had


def test_a_tensor_map_is_made_in_the_context_of_its_device(run):
    """cuTensorMapEncodeTiled may fail with CUDA_ERROR_INVALID_CONTEXT; a thread of autograd's may have no context."""
    assert run("encode", FAKE_DEVICE="-1")[1:3] == ["cuDevicePrimaryCtxRetain 0", "cuCtxSetCurrent device 0"]
    assert run("encode", FAKE_DEVICE="-1")[-2:] == ["cuCtxSetCurrent device -1", "opaque abc0 abcf"]


@pytest.mark.parametrize("scenario", ["launch", "clusters"])
def test_a_kernel_may_be_met_first_while_a_graph_is_captured(run, scenario):
    assert run(scenario, FAKE_CAPTURING="1") == run(scenario)


def test_nothing_synchronises(run):
    assert not any("Synchronize" in line for line in run("launch"))


def test_tensor_maps_reach_the_driver_innermost_first(run):
    assert run("encode")[1:] == [
        "cuTensorMapEncodeTiled type 9 rank 2 address 10000 interleave 0 swizzle 2 promotion 2 fill 0",
        "dim 72 box 32 step 1 stride 160",
        "dim 100 box 64 step 1 stride 0",
        "opaque abc0 abcf",
    ]


def test_every_broken_tensor_map_rule_is_named(run):
    words = [
        "1 to 5 dimensions", "address must be a multiple of 16", "size of dimension 1", "box of dimension 1",
        "stride of dimension 1", "innermost box must be a multiple of 16", "must not exceed the swizzle of 64",
        "element stride of dimension 0", "swizzle must be", "last dimension must be contiguous",
    ]  # fmt: skip
    lines = run("rules")[1:]
    assert len(lines) == len(words)
    for word, line in zip(words, lines, strict=True):
        assert word in line


@pytest.mark.parametrize(
    "call, also",
    [
        ("cuLibraryLoadData", "module mod"),
        ("cuLibraryGetKernel", "kernel entry of module mod"),
        ("cuKernelSetAttribute", "kernel entry, grid (6, 2, 1)"),
        ("cuLaunchKernelEx", "kernel entry, grid (6, 2, 1), block (384, 1, 1), cluster (2, 1, 1), dynamic shared"),
        ("cuDevicePrimaryCtxRetain", "device 1"),
    ],
)
def test_failures_name_the_call_the_error_and_the_kernel(run, call, also):
    last = run("launch", FAKE_FAIL=f"{call}=1")[-1]
    assert last.startswith(f"error: {call}")
    assert "CUDA_ERROR_INVALID_VALUE (invalid argument)" in last
    assert also in last


def test_errors_without_a_name_still_read(run):
    assert "unknown error (no description)" in run("launch", FAKE_FAIL="cuLaunchKernelEx=98765")[-1]


def test_no_driver_old_driver_no_device(run):
    absent = run("launch", library="libcuda_that_is_not_there.so")
    assert absent[0].startswith("unavailable: the CUDA driver is not installed: libcuda_that_is_not_there.so")
    assert "CUDA 12.0 or newer" in run("launch", FAKE_LACKS="cuLibraryLoadData")[-1]
    assert run("launch", FAKE_FAIL="cuInit=100")[-1] == (
        "unavailable: the CUDA driver cannot start: cuInit failed with CUDA_ERROR_NO_DEVICE"
    )


def test_a_library_without_entry_points_is_an_old_driver(run):
    assert "cuGetProcAddress_v2" in run("launch", library="libm.so.6")[-1]


def test_a_missing_image_is_an_error(run):
    assert run("missing_image")[-1].startswith("error: /nonexistent/absent.cubin: no such kernel image")


@pytest.mark.parametrize(
    "m, k, n, strides, kernel, boxes",
    [
        (100, 200, 304, (200, 1, 304, 1), "mk_kn_tma", ["200/64", "100/64", "304/64", "200/64"]),
        (100, 200, 300, (200, 1, 1, 200), "mk_nk_tma", ["200/64", "100/64", "200/64", "300/128"]),
        (104, 200, 300, (1, 104, 1, 200), "km_nk_tma", ["104/64", "200/64", "200/64", "300/128"]),
        (104, 200, 304, (1, 104, 304, 1), "km_kn_tma", ["104/64", "200/64", "304/64", "200/64"]),
        (1, 24, 16, (999, 1, 16, 1), "mk_kn_tma", ["24/64", "1/64", "16/64", "24/64"]),  # one row: no pitch
        (100, 201, 300, (201, 1, 1, 201), "mk_nk_generic", []),  # a pitch of 402 bytes
        (100, 0, 300, (1, 1, 300, 1), "mk_kn_generic", []),  # an empty sum
    ],
)
def test_gemm_chooses_its_kernel_and_its_boxes(run, m, k, n, strides, kernel, boxes):
    """`boxes`: size / box of the dimensions of a group, innermost first, of A and then of B; there is one group."""
    lines = run("gemm", m, k, n, *strides)
    assert f"cuLibraryGetKernel gemm_bf16_{kernel} library 1" in lines
    assert ["/".join(line.split()[1:4:2]) for line in lines if line.startswith("dim")] == [
        box for i, one in enumerate(boxes) for box in ([one, "1/1"] if i % 2 else [one])
    ]
    tiles = -(-m // 256) * -(-n // 256)
    assert any(line.startswith(f"cuLaunchKernelEx grid {2 * tiles} 1 1 block 384 1 1 shared 229440") for line in lines)
    assert "attribute 4 2 1 1" in lines


def test_gemm_is_persistent_and_leaves_empty_outputs_alone(run):
    assert any("grid 132 1 1" in line for line in run("gemm", 8192, 64, 8192, 64, 1, 8192, 1))
    assert not any("cuLaunchKernelEx" in line for line in run("gemm", 0, 64, 64, 64, 1, 64, 1))


def test_gemm_refuses_in_words(run):
    lines = run("refusals")
    words = ["", "a: need two dimensions", "a: need dtype bf16 or f16, got f32[8, 16]", "b: need shape [16, 24]",
             "b: need dtype bf16", "out: need the device", "out: need contiguous rows", "a: need one contiguous",
             "bias: need a contiguous vector of 24", "residual: need shape [8, 24]", "got mish"]  # fmt: skip
    assert len(lines) == len(words)
    for word, line in zip(words, lines, strict=True):
        assert word in line
    assert lines[0] == ""


def test_a_launch_costs_little_on_the_host(run):
    """Choosing the kernel, two tensor maps, parameters and the launch; the bound is wide, the number is printed."""
    best = min(float(run("timing", FAKE_QUIET="1")[0].split()[1]) for _ in range(3))
    print(f"gemm launch without the driver: {best:.2f} us")
    assert best < 20


def test_our_declarations_agree_with_cuda_h(host_program, toolchain):
    real = Path(toolchain.nvcc).resolve()
    places = [real.parent.parent / "include", Path("/usr/local/cuda/include"), Path("/usr/local/cuda-13.0/include")]
    include = next((place for place in places if (place / "cuda.h").exists()), None)
    if include is None:
        pytest.skip("no cuda.h here")
    host_program("header", "tests/kernels/header_main.cpp", flags=("-isystem", str(include)))
