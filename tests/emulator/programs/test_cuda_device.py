"""The way to a GPU and back (cuda_device.py), on a driver that the emulator stands in for: what must fail fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda_device import Device
from emulator_harness import aligned
from two_machines import Runner, assembled, differ, ptx_of

from tkpy.emulator import Module, TensorMap

HOPPER = (Path(__file__).parent / "hopper.cu").read_text()
SOURCE = r"""
extern "C" __global__ void shift(float* y, const float* x, int n, float by) { if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x] + by; }
extern "C" __global__ void sizes(int* out) {
  extern __shared__ int room[];
  room[threadIdx.x + 15 * 1024] = threadIdx.x;
  __syncthreads();
  unsigned ranks, bytes;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  if (threadIdx.x == 0) { int* to = out + 3 * (blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)); to[0] = ranks; to[1] = bytes; to[2] = room[15 * 1024 + blockDim.x * blockDim.y - 1]; }
}
"""  # fmt: skip


@pytest.fixture
def module(compile_cuda: Callable[..., Module]) -> Module:
    return compile_cuda(SOURCE)


def test_arrays_scalars_and_geometry_arrive(emulated_driver: Device, module: Module) -> None:
    room = np.zeros(100, np.float32)
    x, y = room[3:40], room[50:87]  # neither starts on a multiple of 16; both in one piece of memory
    x[...] = np.arange(37)
    emulated_driver.launch(module, ptx_of(module), "shift", block=64, args=[y, x, 37, 0.5])
    assert np.array_equal(y, np.arange(37, dtype=np.float32) + np.float32(0.5))
    assert not room[:3].any()
    assert not room[87:].any()
    out = np.zeros((2, 3, 4, 3), np.int32)
    emulated_driver.launch(
        module, ptx_of(module), "sizes", grid=(4, 3, 2), block=(8, 1), cluster=(2, 1, 2), shared=64 * 1024, args=[out]
    )
    assert (out == [4, 64 * 1024, 7]).all()


def test_failures_name_the_call_and_the_error(emulated_driver: Device, module: Module) -> None:
    x = np.zeros(8, np.float32)
    image = ptx_of(module)
    with pytest.raises(RuntimeError, match="cuCtxSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS"):
        emulated_driver.launch(module, image, "shift", block=512, args=[x, x, 512, 0.0])
    with pytest.raises(RuntimeError, match="cuLaunchKernelEx failed with CUDA_ERROR_INVALID_VALUE"):
        emulated_driver.launch(module, image, "shift", grid=3, cluster=2, args=[x, x, 8, 0.0])
    with pytest.raises(RuntimeError, match="cuModuleGetFunction failed with CUDA_ERROR_NOT_FOUND"):
        emulated_driver.function(image, "absent")
    with pytest.raises(RuntimeError, match="cuModuleLoadData failed with CUDA_ERROR_INVALID_IMAGE"):
        emulated_driver.function(b"no PTX", "absent")
    with pytest.raises(ValueError, match="in no array"):
        emulated_driver.launch(module, image, "shift", args=[x, x, 8, 0.0], pointers=[np.full(1, 4096, np.uint64)])


def test_a_device_that_computes_something_else_is_seen(
    emulated_driver: Device, compile_cuda: Callable[..., Module]
) -> None:
    """The image is another kernel's: one number in one element differs, a tile is moved."""
    wrong = compile_cuda(SOURCE.replace("+ by", "+ (threadIdx.x == 5 ? by * 1.001f : by)"))
    runner = Runner(compile_cuda, 0, emulated_driver, lambda _: ptx_of(wrong))
    x, y = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
    with pytest.raises(AssertionError, match="shift, array 0: 1 of 16 elements differ"):
        runner(SOURCE, "shift", block=32, args=[y, x, 16, 1.0])
    with pytest.raises(AssertionError, match="relative error"):
        runner(SOURCE, "shift", within=1e-6, block=32, args=[y, x, 16, 1.0])
    runner(SOURCE, "shift", within=1e-3, block=32, args=[y, x, 16, 1.0])
    moved = compile_cuda(HOPPER.replace('TILE(2, "{%3, %4}")', 'TILE(2, "{%4, %3}")'))
    runner = Runner(compile_cuda, 0, emulated_driver, lambda _: ptx_of(moved))
    matrix, out = aligned(np.arange(64, dtype=np.float32).reshape(8, 8)), np.zeros((4, 4), np.float32)
    with pytest.raises(AssertionError, match="tile2, array 0"):
        runner(HOPPER, "tile2", block=32, args=[out, TensorMap(matrix, (4, 4)), 16, 1, 2, 0, 0, 0])


def test_comparison_refuses() -> None:
    e = np.linspace(1, 2, 100).astype(np.float32)
    nan = e.copy()
    nan[7] = np.nan
    assert not differ(e.copy(), e, 0)
    assert not differ(nan, nan, 1e-6)
    for device in (0 * e, nan, np.roll(e, 1), -e):
        assert differ(device, e, 0)
        assert differ(device, e, 1e-3)
    assert differ(np.float32([-0.0]), np.float32([0.0]), 0)


@pytest.mark.parametrize("source", [SOURCE, HOPPER], ids=["plain", "hopper"])
def test_the_ptx_assembles_into_what_a_gpu_loads(compile_cuda: Callable[..., Module], source: str) -> None:
    assert assembled(ptx_of(compile_cuda(source))).startswith(b"\x7fELF")
