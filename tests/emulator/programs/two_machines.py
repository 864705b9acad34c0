"""A launch on two machines: emulated, then made on a device from the same PTX, and what they leave in memory compared."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cuda_device import Device
from emulator_harness import find_nvcc

from tkpy.emulator import Module, Run, TensorMap


def arrays_of(args: Sequence[Any], buffers: Sequence[np.ndarray]) -> list[np.ndarray]:
    values = [*args, *buffers]
    return [v.array if isinstance(v, TensorMap) else v for v in values if isinstance(v, (TensorMap, np.ndarray))]


def differ(device: np.ndarray, emulated: np.ndarray, within: float) -> str:
    """Why the two are too far apart; empty when they are not. The bound is of the norm of the difference."""
    if within == 0:
        same = np.array_equal(device.view(np.uint8), emulated.view(np.uint8))
        return "" if same else f"{np.count_nonzero(device != emulated)} of {device.size} elements differ"
    d, e = device.astype(np.float64), emulated.astype(np.float64)
    if not np.array_equal(np.isnan(d), np.isnan(e)):
        return "NaN in different places"
    error, size = np.linalg.norm(np.nan_to_num(d - e)), np.linalg.norm(np.nan_to_num(e))
    return "" if error <= within * size else f"relative error {error / size if size else np.inf:.3g} > {within:.3g}"


class Runner:
    """Runs kernels of CUDA sources at one place, under one seed."""

    def __init__(
        self, compile_cuda: Callable[..., Module], seed: int, device: Device | None, assemble: Callable[[Module], bytes]
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
        arrays = arrays_of(config.get("args", ()), config.get("buffers", ()))
        before = [a.copy() for a in arrays]
        run = module.launch(name, seed=self.seed, **config)
        run.raise_on_findings()
        emulated = [a.copy() for a in arrays]
        for a, was in zip(arrays, before, strict=True):
            if a.flags.writeable:
                a[...] = was
        self.device.launch(module, self.assemble(module), name, pointers=pointers, **config)
        for i, (a, e) in enumerate(zip(arrays, emulated, strict=True)):
            if any(a is u for u in unordered):
                reason = differ(np.sort(a, axis=None), np.sort(e, axis=None), within)
            else:
                reason = differ(np.ascontiguousarray(a), e, within)
            assert not reason, f"{name}, array {i}: {reason}"
            if a.flags.writeable:
                a[...] = e
        return run


def ptx_of(module: Module) -> bytes:
    return Path(module.name).read_bytes()


def cubin_of(module: Module) -> bytes:
    """Assembled from the PTX that the emulator ran, by the ptxas beside nvcc."""
    ptx, cubin = Path(module.name), Path(module.name).with_suffix(".cubin")
    if not cubin.exists():
        nvcc = find_nvcc()
        assert nvcc
        ptxas = shutil.which("ptxas", path=str(Path(nvcc).resolve().parent)) or shutil.which("ptxas")
        assert ptxas, "ptxas not found beside nvcc or on PATH"
        subprocess.run([ptxas, "-arch=sm_90a", str(ptx), "-o", str(cubin)], check=True)
    return cubin.read_bytes()
