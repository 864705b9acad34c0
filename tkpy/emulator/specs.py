"""The little language of `tkpy emulate`: arguments of a kernel written as words."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click
import torch

from tkpy.emulator.arguments import Param, TensorMap
from tkpy.emulator.module import Function

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
FILLS = ("zeros", "ones", "rand", "arange", "poison")

ARGUMENT_HELP = """An argument of the kernel, one option each: in the order of its parameters, or NAME=... (a
parameter's name, the end of it that is its own, or its number from 0).

\b
  7  1.5  null              a number of the type that the kernel declares; a null pointer
  i32:7  u64:7  f32:1.5     a number, of the type that is named
  zeros:float32:1024        an array, fill:dtype:shape. Fills: zeros, ones, a number, rand (normal;
  rand:bfloat16:64x64       whole numbers 0..9), arange, poison (NaNs: what is not written shows)
  x.npy  file.npz:x         an array with the contents of a NumPy file
  @a                        the array of --buffer a=...
  map:a:32x64:128           a tensor map (TMA) of that array: box, and swizzle 0, 32, 64 or 128
  hex:0001ff                the bytes of a structure
"""
NUMBER = r"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|inf|nan)"


@dataclass(frozen=True)
class Launch:
    """What the words say: the values of the parameters, and every array by its names."""

    values: list[Any]
    arrays: list[torch.Tensor]  # each once: those of --buffer first
    named: Mapping[str, torch.Tensor]


def _bad(text: str, why: str) -> click.UsageError:
    return click.UsageError(f"{text}: {why}")


def _shape(text: str, shape: str) -> list[int]:
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise _bad(text, f"a shape is written 1024 or 64x64, not {shape!r}")
    return [int(n) for n in shape.split("x")]


def _filled(text: str, seed: int) -> torch.Tensor:
    """`rand:bfloat16:64x64` as a tensor."""
    parts = text.split(":")
    if len(parts) != 3:
        raise _bad(text, "an array is written fill:dtype:shape, such as zeros:float32:1024")
    fill, dtype_name, shape_text = parts
    if dtype_name not in DTYPES:
        raise _bad(text, f"no dtype {dtype_name!r}; the dtypes are {', '.join(DTYPES)}")
    shape, dtype = _shape(text, shape_text), getattr(torch, dtype_name)
    size = math.prod(shape)
    if size > 1 << 31:
        raise _bad(text, f"an array has at most 2^31 elements, not {size}")
    if fill == "zeros":
        return torch.zeros(shape, dtype=dtype)
    if fill == "ones":
        return torch.ones(shape).to(dtype)
    if fill == "arange":
        return torch.arange(size).reshape(shape).to(dtype)
    if fill == "poison":  # 0x7ff77ff7, as the emulator's own memory: a NaN in every floating-point format
        words = -(-size * dtype.itemsize // 4)
        return torch.full((words,), 0x7FF77FF7, dtype=torch.int32).view(torch.uint8)[: size * dtype.itemsize].view(
            dtype
        ).reshape(shape)  # fmt: skip
    if fill != "rand":
        return torch.full(shape, float(fill), dtype=torch.float64).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else 10, shape, generator=generator).to(dtype)


def _read(text: str) -> torch.Tensor:
    """The contents of `x.npy`, or of `file.npz:x`, copied."""
    import numpy as np

    path, _, member = text.partition(".npz:")
    try:
        if member:
            with np.load(f"{path}.npz", allow_pickle=False) as archive:
                if member not in archive:
                    raise _bad(text, f"the file holds {', '.join(sorted(archive)) or 'nothing'}")
                array = archive[member]
        else:
            array = np.load(text, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _bad(text, f"not readable as a NumPy file ({error})") from error
    if not isinstance(array, np.ndarray):
        raise _bad(text, "holds several arrays: name one, such as file.npz:x")
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise _bad(text, f"elements of type {array.dtype} are not numbers") from error


def array(text: str, seed: int) -> torch.Tensor | None:
    """The array that `text` describes; None when it describes something else."""
    head, colon, _ = text.partition(":")
    if text.endswith(".npy") or text.endswith(".npz") or ".npz:" in text:
        return _read(text)
    return _filled(text, seed) if head in FILLS or (colon and re.fullmatch(NUMBER, head)) else None


def _number(text: str, value: str, kind: str) -> int | float:
    """A number of a PTX type: `1.5` as `f32`, `0x10` as `u32`; b32 and its kin take either."""
    try:
        if kind[0] != "f":
            return int(value, 0)
    except ValueError:
        if kind[0] != "b":
            raise _bad(text, f"{value!r} is no whole number, which type {kind} needs") from None
    try:
        return float(value)
    except ValueError:
        raise _bad(text, f"{value!r} is no number") from None


def _tensor_map(text: str, named: Mapping[str, torch.Tensor]) -> TensorMap:
    parts = text.split(":")
    if not 3 <= len(parts) <= 4:
        raise _bad(text, "a tensor map is written map:buffer:box or map:buffer:box:swizzle, such as map:a:32x64:128")
    if parts[1] not in named:
        raise _bad(text, f"no --buffer {parts[1]!r}; there are {', '.join(named) or 'none'}")
    if not (swizzle := parts[3] if len(parts) == 4 else "0").isdigit():
        raise _bad(text, f"a swizzle is 0, 32, 64 or 128, not {swizzle!r}")
    try:
        return TensorMap(named[parts[1]], _shape(text, parts[2]), swizzle=int(swizzle))
    except (TypeError, ValueError) as error:
        raise _bad(text, str(error)) from error


def _structure(text: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("hex:"))
    except ValueError:
        raise _bad(text, "bytes are written hex: and two digits of 0..9, a..f for each") from None


def _argument(text: str, param: Param, seed: int, named: Mapping[str, torch.Tensor]) -> Any:
    """One --arg as the value of one parameter."""
    head, _, value = text.partition(":")
    if text == "null":
        return None
    if text.startswith("@"):
        if text[1:] not in named:
            raise _bad(text, f"no --buffer {text[1:]!r}; there are {', '.join(named) or 'none'}")
        return named[text[1:]]
    if head == "map":
        return _tensor_map(text, named)
    if head == "hex":
        return _structure(text)
    if (made := array(text, seed)) is not None:
        return made
    typed = re.fullmatch(r"([iusbf])(8|16|32|64)", head) if value else None
    if typed and head != "f8":
        if int(typed[2]) != 8 * param.bytes:
            raise _bad(text, f"parameter {param} has {8 * param.bytes} bits, not {typed[2]}")
        if (typed[1] == "f") != (param.type[0] == "f") and param.type[0] != "b":
            raise _bad(text, f"parameter {param} is not of type {head}")
        result = _number(text, value, head)
        return float(result) if typed[1] == "f" else result
    if value:
        raise _bad(text, f"no kind of argument {head!r}; tkpy emulate --help lists them")
    return _number(text, text, param.type)


def _place(name: str, function: Function, text: str) -> int:
    """Which parameter `name` means."""
    names = [p.name for p in function.params]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(names):
        return int(name)
    close = [i for i, n in enumerate(names) if n.endswith(name)]
    if len(close) != 1:
        what = "no parameter" if not close else "several parameters"
        raise _bad(text, f"{function.name} has {what} {name!r}; it has {', '.join(names) or 'none'}")
    return close[0]


def _buffers(texts: Iterable[str], seed: int) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = {}
    for text in texts:
        name, equals, spec = text.partition("=")
        if not equals or not name.isidentifier():
            raise _bad(f"--buffer {text}", "a buffer is written name=array, such as a=rand:bfloat16:64x64")
        made = array(spec, seed + 1000 + len(named))
        if made is None:
            raise _bad(f"--buffer {text}", "no array: fill:dtype:shape, such as zeros:float32:1024, or a NumPy file")
        named[name] = made
    return named


def read_launch(function: Function, texts: Collection[str], buffers: Collection[str], seed: int) -> Launch:
    """The launch's arguments from their words, by the kernel's own parameters."""
    named = _buffers(buffers, seed)
    given: dict[int, str] = {}
    rest = []
    for text in texts:
        if found := re.fullmatch(r"([\w$%]+)=(.*)", text):
            at = _place(found[1], function, f"--arg {text}")
            if at in given:
                raise _bad(f"--arg {text}", f"parameter {function.params[at]} is given twice")
            given[at] = found[2]
        else:
            rest.append(text)
    open_places = [i for i in range(len(function.params)) if i not in given]
    if len(rest) != len(open_places):
        listed = ", ".join(map(str, function.params)) or "none"
        raise click.UsageError(f"{function.name} takes {len(function.params)} arguments ({listed}), got {len(texts)}")
    given |= dict(zip(open_places, rest, strict=True))
    values = []
    for i, param in enumerate(function.params):
        try:
            values.append(_argument(given[i], param, seed + i, named))
        except click.UsageError as error:
            raise click.UsageError(f"--arg {error.message}") from error
    arrays = list(named.values())
    for param, value in zip(function.params, values, strict=True):
        if isinstance(value, torch.Tensor):
            named.setdefault(param.name, value)
            if not any(value is known for known in arrays):
                arrays.append(value)
    return Launch(values, arrays, named)
