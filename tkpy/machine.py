"""How compiled kernels meet torch tensors: the machine that runs them, views of tensors, streams, errors.

CUDA tensors go to the CUDA driver, on torch's current stream and without synchronising; CPU tensors go to the emulator,
under all its checks. The tensors' device decides, so a launcher is written once for the backends `cuda` and `emulator`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch

from tkpy import build_info
from tkpy.errors import InternalError

View = tuple[int, str, tuple[int, ...], tuple[int, ...], int]

_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


@functools.cache
def _machine(kind: str, folder: str) -> Any:
    from tkpy import _C

    if kind == "cuda":
        return _C.Machine.driver(folder)
    return _C.Machine.emulator(folder, threads=os.cpu_count() or 1)


def machine_of(tensor: torch.Tensor) -> Any:
    """The machine that serves tensors where `tensor` is: made once for each folder of kernels."""
    return _machine(tensor.device.type, str(build_info.KERNELS))


def view(tensor: torch.Tensor | None) -> View | None:
    """What a launcher needs to know of a tensor."""
    if tensor is None:
        return None
    device = tensor.get_device()  # -1 on the CPU
    return tensor.data_ptr(), _NAMES[tensor.dtype], tuple(tensor.shape), tensor.stride(), device


def stream_of(tensor: torch.Tensor) -> int:
    """torch's current stream where `tensor` is, as an address; 0 on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


@contextlib.contextmanager
def launching(op: str) -> Iterator[None]:
    """Whatever a launch raises is ours, not the caller's: `supports` and the op's own checks let the call through."""
    from tkpy import _C

    try:
        yield
    except (_C.MachineError, ValueError) as error:
        raise InternalError(f"tkpy.{op}: {error}") from error
