"""Python values to a kernel's parameter block, and arrays to the memory ranges the kernel may touch."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Range = tuple[int, int, bool]  # first byte, one past the last, writable

_FORMATS = {
    "u8": "B", "s8": "b", "b8": "B", "u16": "H", "s16": "h", "b16": "H", "u32": "I", "s32": "i", "b32": "I",
    "u64": "Q", "s64": "q", "b64": "Q", "f32": "f", "f64": "d", "f16": "e",
}  # fmt: skip


@dataclass(frozen=True)
class Param:
    """One parameter of a kernel, as its PTX declares it."""

    name: str
    type: str
    offset: int
    bytes: int
    is_array: bool

    def __str__(self) -> str:
        return f".{self.type} {self.name}[{self.bytes}]" if self.is_array else f".{self.type} {self.name}"


def memory_range(value: Any) -> Range | None:
    """The bytes an array spans, or None when `value` is no array. Zero-size arrays span nothing."""
    if hasattr(value, "__array_interface__") and hasattr(value, "strides") and not hasattr(value, "data_ptr"):
        pointer, read_only = value.__array_interface__["data"]
        return (*_extent(pointer, value.shape, value.strides, value.itemsize), not read_only)
    if hasattr(value, "data_ptr") and hasattr(value, "element_size"):
        if value.device.type != "cpu":
            raise ValueError(f"the emulator runs on the CPU; this tensor is on {value.device}")
        size = value.element_size()
        return (*_extent(value.data_ptr(), value.shape, [s * size for s in value.stride()], size), True)
    return None


def _extent(pointer: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    if 0 in shape:
        return pointer, pointer
    reach = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    return pointer + sum(r for r in reach if r < 0), pointer + sum(r for r in reach if r > 0) + itemsize


def _array_address(value: Any) -> int:
    return int(value.data_ptr()) if hasattr(value, "data_ptr") else int(value.__array_interface__["data"][0])


def _pack_float(kernel: str, param: Param, code: str, value: float) -> bytes:
    try:
        return struct.pack("<" + code, value)
    except OverflowError:
        raise ValueError(f"{kernel}: {value} does not fit parameter {param}") from None


def _scalar(kernel: str, param: Param, value: Any) -> bytes:
    code = _FORMATS.get(param.type)
    if code is None:
        raise TypeError(f"{kernel}: parameter {param} cannot be given as a number; pass bytes")
    integer = hasattr(value, "__index__")
    if code in "fde":
        if not integer and not isinstance(value, float) and not hasattr(value, "__float__"):
            raise TypeError(f"{kernel}: parameter {param} needs a number, got {type(value).__name__}")
        return _pack_float(kernel, param, code, float(value))
    if isinstance(value, float) or not integer:
        if param.type in ("b32", "b64", "b16") and isinstance(value, float):  # untyped declarations (Triton)
            return _pack_float(kernel, param, {"b16": "e", "b32": "f", "b64": "d"}[param.type], value)
        raise TypeError(f"{kernel}: parameter {param} needs an int, got {type(value).__name__}")
    number = int(value)
    bits = 8 * param.bytes
    if not -(1 << (bits - 1)) <= number < 1 << bits:
        raise ValueError(f"{kernel}: {number} does not fit parameter {param}")
    return (number & ((1 << bits) - 1)).to_bytes(param.bytes, "little")


class TensorMap:
    """A tensor map (CUtensorMap, tiled mode) of an array, to be passed for a 128-byte parameter.

    `box` and `element_strides` are in the array's own order of dimensions, outermost first; `swizzle` is 0, 32, 64 or
    128 bytes. A map that the driver would refuse raises ValueError naming the rule.
    """

    def __init__(
        self,
        tensor: Any,
        box: Sequence[int],
        *,
        swizzle: int = 0,
        element_strides: Sequence[int] | None = None,
    ):
        where = memory_range(tensor)
        if where is None:
            raise TypeError(f"TensorMap needs a torch or numpy array, got {type(tensor).__name__}")
        shape = [int(n) for n in tensor.shape]
        size = int(tensor.element_size() if hasattr(tensor, "element_size") else tensor.itemsize)
        raw = tensor.stride() if hasattr(tensor, "data_ptr") else tensor.strides
        strides = [int(s) * (size if hasattr(tensor, "data_ptr") else 1) for s in raw]
        steps = list(element_strides) if element_strides is not None else [1] * len(shape)
        if len(box) != len(shape) or len(steps) != len(shape):
            raise ValueError(f"box and element_strides need {len(shape)} numbers, as many as the array has dimensions")
        if shape and strides[-1] != size and shape[-1] != 1:
            raise ValueError(
                f"the innermost dimension must be contiguous: its stride is {strides[-1]} bytes, not {size}"
            )
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in _MAP_TYPES:
            raise TypeError(f"a tensor map has no elements of type {name}; it may have {sorted(_MAP_TYPES)}")
        from tkpy import _C

        self.array = tensor
        self.range: Range = where
        self.box, self.element_strides, self.swizzle = tuple(box), tuple(steps), swizzle
        inner = slice(None, None, -1)
        self.encoded: bytes = _C.encode_tensor_map(
            _MAP_TYPES[name], _array_address(tensor), shape[inner], strides[-2::-1], [int(b) for b in box][inner],
            [int(s) for s in steps][inner], swizzle,
        )  # fmt: skip


_MAP_TYPES = {
    "uint8": "u8", "int8": "u8", "bool": "u8", "float8_e4m3fn": "u8", "float8_e5m2": "u8",
    "uint16": "u16", "int16": "u16",
    "uint32": "u32", "int32": "s32", "uint64": "u64", "int64": "s64", "float16": "f16", "bfloat16": "bf16",
    "float32": "f32", "float64": "f64",
}  # fmt: skip


def _one(kernel: str, param: Param, value: Any) -> tuple[bytes, Range | None]:
    if isinstance(value, TensorMap):
        if param.bytes != 128:
            raise TypeError(f"{kernel}: parameter {param} is no tensor map: it has {param.bytes} bytes, not 128")
        return value.encoded, value.range
    where = memory_range(value)
    if where is not None:
        if param.is_array or param.bytes != 8:
            raise TypeError(f"{kernel}: parameter {param} is no pointer, but got an array")
        return _array_address(value).to_bytes(8, "little"), where
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        if len(raw) != param.bytes:
            raise ValueError(f"{kernel}: parameter {param} takes {param.bytes} bytes, got {len(raw)}")
        return raw, None
    if param.is_array:
        raise TypeError(f"{kernel}: parameter {param} is a structure of {param.bytes} bytes; pass bytes")
    if value is None and param.bytes == 8:
        return bytes(8), None
    return _scalar(kernel, param, value), None


def pack(kernel: str, params: Sequence[Param], args: Sequence[Any] | Mapping[str, Any]) -> tuple[bytes, list[Range]]:
    """The parameter block and the ranges of every array among the arguments."""
    if isinstance(args, Mapping):
        names = {p.name for p in params}
        unknown = [name for name in args if name not in names]
        missing = [p.name for p in params if p.name not in args]
        if unknown or missing:
            raise TypeError(f"{kernel}: unknown arguments {unknown}, missing arguments {missing}")
        args = [args[p.name] for p in params]
    if len(args) != len(params):
        listed = ", ".join(str(p) for p in params)
        raise TypeError(f"{kernel} takes {len(params)} arguments ({listed}), got {len(args)}")
    block = bytearray(max((p.offset + p.bytes for p in params), default=0))
    ranges: list[Range] = []
    for param, value in zip(params, args, strict=True):
        raw, where = _one(kernel, param, value)
        block[param.offset : param.offset + param.bytes] = raw
        if where is not None:
            ranges.append(where)
    return bytes(block), ranges
