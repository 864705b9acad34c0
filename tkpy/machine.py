"""How compiled kernels meet torch tensors: the machine that runs them, views of tensors, streams, errors.

    launch("gemm", a, b, out, bias, None, "silu", op="linear")

CUDA tensors go to the CUDA driver, on torch's current stream and without synchronising; CPU tensors go to the emulator,
under all its checks. The tensors' device decides, so a launcher is written once for the backends `cuda` and `emulator`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from tkpy import build_info
from tkpy.emulator.run import Count, Counters, CountRow
from tkpy.errors import InternalError, Refusal

View = tuple[int, str, tuple[int, ...], tuple[int, ...], int]

_MOST_OF_A_MULTIPROCESSOR = 200 * 1024  # bytes of shared memory
_NAMES = {
    torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.float64: "f64",
    torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.bool: "u8", torch.uint8: "u8",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


@functools.cache
def _read_build(kernel: str, folder: str) -> str | None:
    if importlib.util.find_spec("tkpy._C") is None:
        return "the compiled part tkpy._C is missing"
    return build_info.missing_reason(kernel, Path(folder))


@torch.compiler.assume_constant_result
def _missing_kernel(kernel: str, folder: str) -> str | None:
    """Why a compiled kernel cannot be loaded, in words; None when it can. Read once: builds do not change under us."""
    return _read_build(kernel, folder)


def refusals(kernel: str, backend: str, device: torch.device) -> list[Refusal]:
    """Why the compiled module `kernel` cannot serve `backend` ("cuda" or "emulator") for tensors on `device`."""
    reasons = []
    if missing := _missing_kernel(kernel, str(build_info.KERNELS)):
        reasons.append(Refusal("not_built", missing))
    if backend == "emulator":
        if device.type != "cpu":
            reasons.append(Refusal("needs_cpu", f"needs CPU tensors, got {device.type} tensors"))
    elif device.type != "cuda":
        reasons.append(Refusal("needs_gpu", f"needs CUDA tensors, got {device.type} tensors"))
    elif (capability := compute_capability(device)) != (9, 0):
        found = ".".join(map(str, capability))
        reasons.append(Refusal("compute_capability", f"needs compute capability 9.0, got {found}"))
    return reasons


def compute_capability(device: torch.device) -> tuple[int, int]:
    """That of a CUDA device; (9, 0) where there is none, to answer what a Hopper device would run."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (9, 0)


@functools.cache
def compiled() -> Any:
    """tkpy._C; imported when a kernel is first launched, so that everything else works without it."""
    return importlib.import_module("tkpy._C")


@functools.cache
def _machine(kind: str, folder: str) -> Any:
    if kind == "cuda":
        return compiled().Machine.driver(folder)
    return compiled().Machine.emulator(folder, threads=os.cpu_count() or 1)


_counting: contextvars.ContextVar[Any] = contextvars.ContextVar("tkpy_counting", default=None)


@dataclasses.dataclass(frozen=True)
class KernelCount:
    """What the launches of one kernel counted in the emulator; `sectors_read`, `sectors_written`: distinct 32-byte
    sectors of global memory, summed over launches."""

    kernel: str
    module: Path
    launches: int
    sectors_read: int
    sectors_written: int
    counters: Counters


@contextlib.contextmanager
def counting() -> Iterator[Callable[[], list[KernelCount]]]:
    """Within this context, launches on CPU tensors run on an emulator that counts; what it gives says what each kernel
    did so far: instructions, bank passes, sectors, bytes, flops (docs/emulator.md)."""
    folder = build_info.KERNELS
    emulator = compiled().Machine.emulator(str(folder), threads=os.cpu_count() or 1, counters=True)

    def counted() -> list[KernelCount]:
        return [
            KernelCount(
                kernel, folder / f"{module}.ptx", launches, read, written, Counters(CountRow.of(*r) for r in rows)
            )
            for kernel, (module, launches, read, written, rows) in emulator.counters().items()
        ]

    token = _counting.set(emulator)
    try:
        yield counted
    finally:
        _counting.reset(token)


def total(counted: Iterable[KernelCount]) -> Count:
    """The sum over kernels."""
    return sum((one.counters.total for one in counted), Count())


def _machine_of(tensor: torch.Tensor) -> Any:
    """The machine that serves tensors where `tensor` is: made once for each folder of kernels."""
    if not tensor.is_cuda and _counting.get() is not None:
        return _counting.get()
    return _machine(tensor.device.type, str(build_info.KERNELS))


def view(tensor: torch.Tensor) -> View:
    """What a launcher needs to know of a tensor."""
    device = tensor.get_device()  # -1 on the CPU
    return tensor.data_ptr(), _NAMES[tensor.dtype], tuple(tensor.shape), tensor.stride(), device


def _stream_of(tensor: torch.Tensor) -> int:
    """torch's current stream where `tensor` is, as an address; 0 on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


@functools.lru_cache(maxsize=256)
def _clusters(machine: Any, device: int, module: str, kernel: str, ctas: int) -> int:
    return machine.resident_clusters(
        module=module, kernel=kernel, block=128, cluster=ctas, shared=_MOST_OF_A_MULTIPROCESSOR, device=device
    )


def clusters(tensor: torch.Tensor, module: str, kernel: str, ctas: int, *, op: str) -> int:
    """How many clusters of so many CTAs run at once where `tensor` is, each CTA on a multiprocessor of its own: what a
    launch of `kernel` cuts its work into, since one more would run alone after all others. GPCs are cut differently
    from one GPU to the next: an H100's 132 multiprocessors hold 14 to 16 clusters of eight."""
    try:
        return _clusters(_machine_of(tensor), max(0, tensor.get_device()), module, kernel, ctas)
    except (compiled().MachineError, compiled().MachineUnavailable) as error:
        raise InternalError(f"tkpy.{op}: {error}") from error


def launch(launcher: str, *arguments: torch.Tensor | bool | int | float | str | None, op: str) -> str:
    """Calls what `launch.cpp` registered as `launcher` (csrc/runtime/launcher.h) where the first tensor is; returns the
    name of the kernel that ran. `op` is named in errors. Whatever a launch raises is ours, not the caller's: `supports`
    and the op's own checks let the call through."""
    first = next(argument for argument in arguments if isinstance(argument, torch.Tensor))
    values = [view(argument) if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    extension = compiled()
    try:
        return extension.launch(launcher, _machine_of(first), _stream_of(first), *values)
    except (extension.MachineError, extension.MachineUnavailable, TypeError, ValueError) as error:
        raise InternalError(f"tkpy.{op}: {error}") from error
