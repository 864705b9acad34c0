"""A launch on two machines: emulated, then made on a device from the same PTX, and what they leave in memory compared."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from cuda_device import Device
from emulator_harness import find_nvcc

from tkpy.emulator import Module, Run, TensorMap


def arrays_of(args: Sequence[Any], buffers: Sequence[np.ndarray]) -> list[np.ndarray]:
    values = [*args, *buffers]
    return [v.array if isinstance(v, TensorMap) else v for v in values if isinstance(v, (TensorMap, np.ndarray))]


def differ(device: np.ndarray, emulated: np.ndarray, within: float) -> str:
    """Why the two are too far apart; empty when they are not. The bound is of the norm of the difference."""
    if within == 0 or device.dtype.kind in "iub":
        same = np.array_equal(device.view(np.uint8), emulated.view(np.uint8))
        return "" if same else f"{np.count_nonzero(device != emulated)} of {device.size} elements differ"
    d, e = device.astype(np.float64), emulated.astype(np.float64)
    if not np.array_equal(np.isnan(d), np.isnan(e)):
        return "NaN in different places"
    error, size = np.linalg.norm(np.nan_to_num(d - e)), np.linalg.norm(np.nan_to_num(e))
    return "" if error <= within * size else f"relative error {error / size if size else np.inf:.3g} > {within:.3g}"


def launch_on_both(
    module: Module, image: bytes, device: Device, name: str, *, within: float = 0.0, unordered: Sequence[np.ndarray] = (),
    pointers: Sequence[np.ndarray] = (), by_schedule: Collection[int] = (), seed: int = 0, checks: Any = "all", **config: Any,
) -> Run:  # fmt: skip
    """The emulator's run; its results stay in the arrays. Floats may be `within` apart, all else must be the same; arrays at
    the addresses `by_schedule` hold what the schedule chose: they are left as the device made them, for the caller to judge."""
    arrays = arrays_of(config.get("args", ()), config.get("buffers", ()))
    before = [a.copy() for a in arrays]
    run = module.launch(name, seed=seed, checks=checks, **config)
    run.raise_on_findings()
    emulated = [a.copy() for a in arrays]
    for a, was in zip(arrays, before, strict=True):
        if a.flags.writeable:
            a[...] = was
    device.launch(module, image, name, pointers=pointers, **config)
    fixed = [
        (i, a, e) for i, (a, e) in enumerate(zip(arrays, emulated, strict=True)) if a.ctypes.data not in by_schedule
    ]
    for i, a, e in fixed:
        got = np.ascontiguousarray(a)
        if any(a is u for u in unordered):
            reason = differ(np.sort(got, axis=None), np.sort(e, axis=None), within)
        else:
            reason = differ(got, np.ascontiguousarray(e), within)
        assert not reason, f"{name}, array {i}: {reason}"
    for _, a, e in fixed:
        if a.flags.writeable:
            a[...] = e
    return run


class Runner:
    """Runs kernels of CUDA sources at one place, under one seed."""

    def __init__(
        self, compile_cuda: Callable[..., Module], seed: int, device: Device | None, assemble: Callable[[bytes], bytes]
    ):
        self.compile, self.seed, self.device, self.assemble = compile_cuda, seed, device, assemble

    def __call__(
        self, source: str, name: str, *, within: float = 0.0, unordered: Sequence[np.ndarray] = (),
        pointers: Sequence[np.ndarray] = (), **config: Any,
    ) -> Run:  # fmt: skip
        """`within`: how far a device may be from the emulator, of the norm of each array; `unordered` arrays may be permuted;
        `pointers` are arrays of addresses. The rest is Module.launch's."""
        module = self.compile(source)
        if self.device is None:
            run = module.launch(name, seed=self.seed, **config)
            run.raise_on_findings()
            return run
        room: dict[str, Any] = {"within": within, "unordered": unordered, "pointers": pointers}
        image = self.assemble(ptx_of(module))
        return launch_on_both(module, image, self.device, name, seed=self.seed, **room, **config)


def as_numpy(value: Any) -> Any:
    """A tensor as an array of the same memory; other arguments as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if value.dtype == torch.bfloat16 else value.numpy()


BOUNDS = {2: 2e-3, 4: 2e-5, 8: 1e-13}  # of Triton kernels, by the bytes of the narrowest floats among the arguments


class TritonModule:
    """Stands in for the module of a Triton kernel: what it launches is launched on a device too."""

    def __init__(
        self, ptx: str, name: str, device: Device, assemble: Callable[[bytes], bytes], by_schedule: Collection[int]
    ):
        self.module, self.device, self.image = Module(ptx, name), device, assemble(ptx.encode())
        self.by_schedule = by_schedule
        self.kernel = self.module.kernel

    def launch(self, name: str, *, args: Sequence[Any], **config: Any) -> Run:
        given = [as_numpy(v) for v in args]
        floats = [a.itemsize for a in arrays_of(given, ()) if a.dtype.kind not in "iub"]
        within = BOUNDS[min(floats)] if floats else 0.0
        return launch_on_both(
            self.module,
            self.image,
            self.device,
            name,
            within=within,
            by_schedule=self.by_schedule,
            args=given,
            **config,
        )


def ptx_of(module: Module) -> bytes:
    """The PTX of a module that was loaded from a file."""
    return Path(module.name).read_bytes()


def as_it_is(ptx: bytes) -> bytes:
    return ptx


@functools.cache
def assembled(ptx: bytes) -> bytes:
    """The cubin of the PTX that the emulator ran, by the ptxas beside nvcc."""
    nvcc = find_nvcc()
    beside = shutil.which("ptxas", path=str(Path(nvcc).resolve().parent)) if nvcc else None
    ptxas = beside or shutil.which("ptxas")
    assert ptxas, "ptxas not found beside nvcc or on PATH"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_bytes(ptx)
        subprocess.run([ptxas, "-arch=sm_90a", str(source), "-o", str(cubin)], check=True)
        return cubin.read_bytes()
