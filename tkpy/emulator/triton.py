"""Triton kernels in the emulator: compiled as Triton's own just-in-time launch would, run from their PTX on the CPU.

    run = tkpy.emulator.triton.launch(kernel, (4,), x, y, n, BLOCK=128, num_warps=4)   # one launch, inputs on the CPU
    with tkpy.emulator.triton.emulated(capability=80) as runs:                         # every kernel[grid](...) inside
        model(x)

No GPU and no driver; the package triton brings the assembler it needs. Specialisation is Triton's: a pointer that is a
multiple of 16 bytes or an int of 1 makes another kernel, just as on the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tkpy.emulator.module import Module
from tkpy.emulator.run import Run

try:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction
except ImportError as error:
    raise ImportError("tkpy.emulator.triton needs the package triton >= 3.6") from error

_modules: dict[str, Module] = {}
_lock = threading.RLock()


class _Driver:
    """What Triton asks of a driver before it compiles; the name of the device keeps its caches apart from a GPU's."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> str:
        return f"emulator sm_{self.capability}"

    def get_current_stream(self, device: object) -> int:
        return 0


@contextmanager
def _driver_for(capability: int) -> Iterator[None]:
    with _lock:
        before = driver._active
        driver.set_active(_Driver(capability))
        try:
            yield
        finally:
            driver._active = before


_jit_run = JITFunction.run


def _require_compiled(kernel: Any) -> None:
    if not isinstance(kernel, JITFunction):
        what = f"{type(kernel).__module__}.{type(kernel).__name__}"
        hint = " (unset TRITON_INTERPRET)" if "Interpreted" in what else ""
        raise TypeError(f"needs a function under @triton.jit, got {what}{hint}")


def compile(kernel: Any, *args: Any, capability: int = 90, **options: Any) -> Any:
    """Triton's compiled kernel for these arguments (`.asm["ptx"]`, `.metadata`), specialised as a launch would be."""
    _require_compiled(kernel)
    with _driver_for(capability):
        return _jit_run(kernel, *args, grid=None, warmup=True, **options)


def launch_compiled(
    compiled: Any, grid: int | Sequence[int], args: Mapping[str, Any] | Sequence[Any], **how: Any
) -> Run:
    """Run what `triton.compile` or `compile` returned: the run-time arguments by name, or in order without constants.

    `how` goes to `Module.launch`: seed, checks, counters, max_instructions, threads. Scratch memory that the kernel
    asks for is allocated; threads, cluster and shared memory are those of its metadata.
    """
    ptx, metadata = compiled.asm["ptx"], compiled.metadata
    module = _modules.get(ptx)
    if module is None:
        module = _modules.setdefault(ptx, Module(ptx, f"{metadata.name} (Triton)"))
    function = module.kernel(metadata.name)
    types = {name: kind for name, kind in compiled.src.signature.items() if kind != "constexpr"}
    strange = [name for name, kind in types.items() if not isinstance(kind, str) or "desc" in kind.lower()]
    if strange:
        raise TypeError(f"{metadata.name}: arguments {strange} are tuples or tensor descriptors; pass pointers")
    if isinstance(args, Mapping):
        missing = [name for name in types if name not in args]
        if missing:
            raise TypeError(f"{metadata.name}: missing arguments {missing}")
        given = [args[name] for name in types]
    else:
        given = list(args)
        if len(given) != len(types):
            raise TypeError(f"{metadata.name} takes {len(types)} arguments ({', '.join(types)}), got {len(given)}")
    values = [float(v) if kind[:2] in ("fp", "bf") else v for v, kind in zip(given, types.values(), strict=True)]
    blocks = [int(grid)] if isinstance(grid, int) else [int(n) for n in grid]
    ctas = int(getattr(metadata, "num_ctas", 1))
    blocks[0] *= ctas
    values += _scratch(metadata, len(function.params) - len(values), int(np.prod(blocks)))
    return module.launch(
        function.name,
        grid=blocks,
        block=32 * metadata.num_warps,
        cluster=ctas,
        shared=metadata.shared,
        args=values,
        **how,
    )


def _scratch(metadata: Any, pointers: int, ctas: int) -> list[np.ndarray | None]:
    """The trailing pointers of Triton 3.6 and later: to global scratch, then to profiler scratch."""
    sizes = [getattr(metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile")]
    if not 0 <= pointers <= len(sizes):
        raise ValueError(
            f"{metadata.name} has {pointers} parameters more than arguments; 0 to {len(sizes)} were expected"
        )
    return [_aligned(size * ctas) if size else None for size in sizes[:pointers]]


def _aligned(size: int, to: int = 256) -> np.ndarray:
    room = np.zeros(size + to, np.uint8)
    start = -room.ctypes.data % to
    return room[start : start + size]


def launch(
    kernel: Any,
    grid: int | Sequence[int] | Callable[[dict[str, Any]], Sequence[int]],
    *args: Any,
    capability: int = 90,
    seed: int = 0,
    checks: str | Collection[str] = "all",
    **options: Any,
) -> Run:
    """`kernel[grid](*args, **options)` on CPU tensors, in the emulator. The findings are in the Run."""
    _require_compiled(kernel)
    with _driver_for(capability):
        compiled = _jit_run(kernel, *args, grid=None, warmup=True, **options)
        bind = kernel.device_caches[driver.active.get_current_device()][-1]
        bound = bind(*args, **options)[0]
    size = grid(bound) if callable(grid) else grid
    return launch_compiled(compiled, size, bound, seed=seed, checks=checks)


@contextmanager
def emulated(
    capability: int = 90, *, seed: int = 0, checks: str | Collection[str] = "all", raise_on_findings: bool = True
) -> Iterator[list[Run]]:
    """Inside, every launch of a Triton kernel runs in the emulator, on CPU tensors; yields the list of runs so far.

    For the whole process: Triton has one active driver. Each launch takes the next seed.
    """
    runs: list[Run] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if warmup:
            return _jit_run(self, *args, grid=grid, warmup=True, **options)
        done = launch(self, grid, *args, capability=capability, seed=seed + len(runs), checks=checks, **options)
        runs.append(done)
        if raise_on_findings:
            done.raise_on_findings()
        return None

    with _driver_for(capability):
        JITFunction.run = run
        try:
            yield runs
        finally:
            JITFunction.run = _jit_run


__all__ = ["compile", "emulated", "launch", "launch_compiled"]
