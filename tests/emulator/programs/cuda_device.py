"""A kernel on a CUDA device, called as `tkpy.emulator.Module.launch` is: numpy arrays go there and come back.

All of it is the driver API through ctypes, so that what is assembled is the PTX that the emulator ran; tests without a GPU
run it against emulated_cuda.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from tkpy.emulator import Function, Module, TensorMap
from tkpy.emulator.arguments import Param, memory_range, pack

MAX_DYNAMIC_SHARED, NON_PORTABLE_CLUSTER, CLUSTER_DIMENSION = 8, 14, 4  # CUfunction_attribute, CUlaunchAttributeID
MAP_TYPES = {"uint8": 0, "int8": 0, "uint16": 1, "int16": 1, "uint32": 2, "int32": 3, "uint64": 4, "int64": 5, "float16": 6,
             "float32": 7, "float64": 8, "bfloat16": 9}  # fmt: skip
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
PAGE = 256  # cuMemAlloc aligns to it; an array keeps its place modulo this


class LaunchAttribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16)]


class LaunchConfig(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint), ("stream", ctypes.c_void_p),
                ("attributes", ctypes.POINTER(LaunchAttribute)), ("count", ctypes.c_uint)]  # fmt: skip


def triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*((value,) if isinstance(value, int) else tuple(value)), 1, 1)[:3]
    return x, y, z


class Copies:
    """Every array of a launch on the device; arrays that share memory here share it there."""

    def __init__(self, device: Device, arrays: Sequence[np.ndarray], pointers: Sequence[np.ndarray]):
        self.device, self.spans = device, []
        self.pointers = [(p, p.copy()) for p in pointers]
        for low, high, _ in sorted(filter(None, map(memory_range, arrays))):
            if self.spans and low < self.spans[-1][1]:
                self.spans[-1] = (self.spans[-1][0], max(high, self.spans[-1][1]))
            elif high > low:
                self.spans.append((low, high))
        self.bases = [device.allocate(high - low + PAGE) + low % PAGE for low, high in self.spans]
        for p, values in self.pointers:  # for the time of the copy the words hold the device's addresses
            p[...] = np.array([self.there(int(v)) if v else 0 for v in values.ravel()], np.uint64).reshape(p.shape)
        for (low, high), base in zip(self.spans, self.bases, strict=True):
            device.call("cuMemcpyHtoD_v2", ctypes.c_uint64(base), ctypes.c_void_p(low), ctypes.c_size_t(high - low))
        for p, values in self.pointers:
            p[...] = values

    def there(self, address: int) -> int:
        for (low, high), base in zip(self.spans, self.bases, strict=True):
            if low <= address < high:
                return base + address - low
        raise ValueError(f"the address {address:#x} is in no array of the launch")

    def back(self) -> None:
        for (low, high), base in zip(self.spans, self.bases, strict=True):
            self.device.call(
                "cuMemcpyDtoH_v2", ctypes.c_void_p(low), ctypes.c_uint64(base), ctypes.c_size_t(high - low)
            )
        for p, values in self.pointers:
            p[...] = values

    def free(self) -> None:
        for (low, _), base in zip(self.spans, self.bases, strict=True):
            self.device.call("cuMemFree_v2", ctypes.c_uint64(base - low % PAGE))


class Device:
    def __init__(self, library: str = "libcuda.so.1"):
        self.cuda = ctypes.CDLL(library)
        self.modules: dict[bytes, ctypes.c_void_p] = {}
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        parts = (ctypes.c_int(), ctypes.c_int())
        for part, attribute in zip(parts, (75, 76), strict=True):
            self.call("cuDeviceGetAttribute", ctypes.byref(part), ctypes.c_int(attribute), device)
        self.capability = (parts[0].value, parts[1].value)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
            raise RuntimeError(f"{name} failed with {text.value.decode() if text.value else code}")

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def encode(self, m: TensorMap, copies: Copies) -> bytes:
        """The map of the array's copy, by the driver."""
        array, rank = m.array, m.array.ndim
        opaque = ctypes.create_string_buffer(128 + 64)
        at = ctypes.addressof(opaque) + -ctypes.addressof(opaque) % 64
        inner = lambda kind, values: (kind * max(1, len(values)))(*values[::-1])  # noqa: E731
        self.call(
            "cuTensorMapEncodeTiled", ctypes.c_void_p(at), ctypes.c_int(MAP_TYPES[str(array.dtype)]), ctypes.c_uint(rank),
            ctypes.c_void_p(copies.there(array.ctypes.data)), inner(ctypes.c_uint64, array.shape),
            inner(ctypes.c_uint64, array.strides[:-1]), inner(ctypes.c_uint32, m.box), inner(ctypes.c_uint32, m.element_strides),
            ctypes.c_int(0), ctypes.c_int(SWIZZLES[m.swizzle]), ctypes.c_int(0), ctypes.c_int(0),
        )  # fmt: skip
        return ctypes.string_at(at, 128)

    def parameters(self, f: Function, args: Sequence[Any], copies: Copies) -> bytes:
        def moved(param: Param, value: Any) -> Any:
            if isinstance(value, TensorMap):
                return self.encode(value, copies)
            return copies.there(value.ctypes.data) if isinstance(value, np.ndarray) else value

        return pack(f.name, f.params, [moved(p, v) for p, v in zip(f.params, args, strict=True)])[0]

    def function(self, image: bytes, name: str) -> ctypes.c_void_p:
        if image not in self.modules:
            self.modules[image] = ctypes.c_void_p()
            self.call("cuModuleLoadData", ctypes.byref(self.modules[image]), ctypes.c_char_p(image))
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), self.modules[image], ctypes.c_char_p(name.encode()))
        return function

    def launch(
        self, module: Module, image: bytes, name: str, *, grid: int | Sequence[int] = 1, block: int | Sequence[int] = 1,
        cluster: int | Sequence[int] | None = None, shared: int = 0, args: Sequence[Any] = (),
        buffers: Sequence[np.ndarray] = (), pointers: Sequence[np.ndarray] = (),
    ) -> None:  # fmt: skip
        """`image` is the cubin, or PTX, of `module`; words of `pointers` (in arrays of the launch) are addresses in them."""
        f = module.kernel(name)
        arrays = [a.array if isinstance(a, TensorMap) else a for a in args if isinstance(a, (TensorMap, np.ndarray))]
        copies = Copies(self, [*arrays, *buffers], pointers)
        block_bytes = self.parameters(f, args, copies)
        function, size = self.function(image, f.name), ctypes.c_size_t(len(block_bytes))
        shape = triple(cluster or f.required_cluster or 1)
        self.call("cuFuncSetAttribute", function, ctypes.c_int(MAX_DYNAMIC_SHARED), ctypes.c_int(shared))
        attribute = LaunchAttribute(CLUSTER_DIMENSION, 0, (ctypes.c_uint * 16)(*shape))
        if np.prod(shape) > 8:
            self.call("cuFuncSetAttribute", function, ctypes.c_int(NON_PORTABLE_CLUSTER), ctypes.c_int(1))
        config = LaunchConfig((ctypes.c_uint * 3)(*triple(grid)), (ctypes.c_uint * 3)(*triple(block)), shared, None,
                              ctypes.pointer(attribute), int(np.prod(shape) > 1))  # fmt: skip
        given = ctypes.create_string_buffer(block_bytes, max(1, len(block_bytes)))
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(given), 2, ctypes.addressof(size), None)
        self.call("cuLaunchKernelEx", ctypes.byref(config), function, None, extra)
        self.call("cuCtxSynchronize")
        copies.back()
        copies.free()
