"""Runs one kernel of a compiled module, in the emulator under all checks or on the GPU: tests are written once.

Arguments are CPU tensors, numbers and `Map`s; on the GPU tensors are copied there and back. Clusters are given by the
kernel's own __cluster_dims__."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tkpy import emulator

#: For `@pytest.fixture(params=PLACES)`.
PLACES = ["emulator", pytest.param("gpu", marks=pytest.mark.gpu)]


@dataclass(frozen=True)
class Map:
    """A tensor map of `tensor`: box and coordinates outermost first."""

    tensor: torch.Tensor
    box: tuple[int, ...]
    swizzle: int = 128


class Emulated:
    def __init__(self, folder: Path, name: str):
        self.module = emulator.load(folder / f"{name}.ptx")

    def __call__(self, name, args, *, block, grid=1, shared=0, seed=0):
        given = [emulator.TensorMap(a.tensor, a.box, swizzle=a.swizzle) if isinstance(a, Map) else a for a in args]
        cluster = self.module.kernels[name].required_cluster or (1, 1, 1)
        run = self.module.launch(
            name, grid=grid, block=block, cluster=cluster, args=given, shared=shared, seed=seed,
            max_instructions=3_000_000,
        )  # fmt: skip
        run.raise_on_findings()
        return run


class OnGpu:
    """The cubin through the driver; its parameters are described by the PTX it was made from."""

    def __init__(self, folder: Path, name: str):
        if torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("needs compute capability 9.0")
        self.kernels = emulator.load(folder / f"{name}.ptx").kernels
        self.cuda = ctypes.CDLL("libcuda.so.1")
        torch.zeros(1, device="cuda")  # makes the context
        self.module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self.module), (folder / f"{name}.cubin").read_bytes())

    def _call(self, function, *args):
        code = getattr(self.cuda, function)(*args)
        assert code == 0, f"{function} failed with {code}"

    def _map(self, tensor: torch.Tensor, box: tuple[int, ...], swizzle: int) -> bytes:
        kinds = {torch.uint8: 0, torch.int8: 0, torch.uint32: 2, torch.int32: 3, torch.int64: 5, torch.float16: 6,
                 torch.float32: 7, torch.float64: 8, torch.bfloat16: 9}  # fmt: skip
        rank, size = tensor.dim(), tensor.element_size()
        opaque = (ctypes.c_uint64 * 24)()
        aligned = ctypes.addressof(opaque) + -ctypes.addressof(opaque) % 64
        dims = (ctypes.c_uint64 * rank)(*tensor.shape[::-1])
        strides = (ctypes.c_uint64 * max(1, rank - 1))(*(s * size for s in tensor.stride()[-2::-1]))
        boxes, ones = (ctypes.c_uint32 * rank)(*box[::-1]), (ctypes.c_uint32 * rank)(*[1] * rank)
        mode = {0: 0, 32: 1, 64: 2, 128: 3}[swizzle]
        self._call(
            "cuTensorMapEncodeTiled", ctypes.c_void_p(aligned), kinds[tensor.dtype], rank,
            ctypes.c_void_p(tensor.data_ptr()), dims, strides, boxes, ones, 0, mode, 2, 0,
        )  # fmt: skip
        return ctypes.string_at(aligned, 128)

    def __call__(self, name, args, *, block, grid=1, shared=0, seed=0):
        copies, params = [], []
        for value, param in zip(args, self.kernels[name].params, strict=True):
            tensor = value.tensor if isinstance(value, Map) else value
            if isinstance(tensor, torch.Tensor):
                there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
                there.copy_(tensor)
                copies.append((tensor, there))
            if isinstance(value, Map):
                params.append(self._map(there, value.box, value.swizzle))
            elif isinstance(value, torch.Tensor):
                params.append(there.data_ptr().to_bytes(8, "little"))
            else:
                params.append(emulator.arguments._scalar(name, param, value))
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), self.module, name.encode())
        self._call("cuFuncSetAttribute", function, 8, shared)
        blocks = [ctypes.create_string_buffer(p + bytes(64), len(p) + 64) for p in params]
        pointers = (ctypes.c_void_p * len(blocks))(*(ctypes.addressof(b) for b in blocks))
        shape = [*(grid if isinstance(grid, tuple) else (grid,)), 1, 1][:3]
        self._call("cuLaunchKernel", function, *shape, block, 1, 1, shared, None, pointers, None)
        torch.cuda.synchronize()
        for here, there in copies:
            here.copy_(there)


def launcher(place: str, folder: Path, name: str):
    return (Emulated if place == "emulator" else OnGpu)(folder, name)
