"""Loading PTX and launching its kernels."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tkpy.emulator import arguments
from tkpy.emulator.arguments import Param
from tkpy.emulator.run import Geometry, KernelError, Run

try:
    from tkpy import _C
except ImportError as error:  # pragma: no cover - only in a checkout that was never built
    message = "tkpy's compiled part is missing: build it with `pip install .` (needs a C++20 compiler)"
    raise ImportError(message) from error

CHECKS: tuple[str, ...] = tuple(_C.CHECKS)
MAX_SHARED = 232448  # bytes a block may have on sm_90


@dataclass(frozen=True)
class Unmodelled:
    """An instruction that the emulator cannot run; reaching it stops the kernel."""

    line: int
    text: str
    reason: str


@dataclass(frozen=True)
class Function:
    """A kernel or device function of a module."""

    name: str
    index: int
    is_kernel: bool
    line: int
    params: tuple[Param, ...]
    unmodelled: tuple[Unmodelled, ...]
    instructions: int
    registers: int  # rows of 32 lanes that one call needs
    local_bytes: int
    required_threads: tuple[int, int, int] | None
    max_threads: tuple[int, int, int] | None
    required_cluster: tuple[int, int, int] | None


def _function(raw: Mapping[str, Any]) -> Function:
    def triple(value: tuple[int, int, int]) -> tuple[int, int, int] | None:
        return value if any(value) else None

    return Function(
        name=raw["name"],
        index=raw["index"],
        is_kernel=raw["is_kernel"],
        line=raw["line"],
        params=tuple(Param(**p) for p in raw["params"]),
        unmodelled=tuple(Unmodelled(*u) for u in raw["unmodelled"]),
        instructions=raw["instructions"],
        registers=raw["registers"],
        local_bytes=raw["local_bytes"],
        required_threads=triple(raw["required_threads"]),
        max_threads=triple(raw["max_threads"]),
        required_cluster=triple(raw["required_cluster"]),
    )


def _dim3(name: str, value: int | Sequence[int], limits: tuple[int, int, int]) -> tuple[int, int, int]:
    parts = (value,) if hasattr(value, "__index__") else tuple(value)
    if not 1 <= len(parts) <= 3 or not all(hasattr(p, "__index__") for p in parts):
        raise TypeError(f"{name} must be one to three ints, got {value!r}")
    x, y, z = (*(int(p) for p in parts), 1, 1)[:3]
    for axis, n, limit in zip("xyz", (x, y, z), limits, strict=True):
        if not 1 <= n <= limit:
            raise ValueError(f"{name}.{axis} must be in 1..{limit}, got {n}")
    return x, y, z


def _check_mask(checks: str | Collection[str]) -> int:
    if checks == "all":
        return (1 << len(CHECKS)) - 1
    if checks == "none":
        return 0
    if isinstance(checks, str):
        raise ValueError(f'checks must be "all", "none" or a set of {list(CHECKS)}, got {checks!r}')
    unknown = [c for c in checks if c not in CHECKS]
    if unknown:
        raise ValueError(f"unknown checks {unknown}; known: {list(CHECKS)}")
    return sum(1 << CHECKS.index(c) for c in set(checks))


def _slots(multiprocessors: int, cluster: tuple[int, int, int]) -> int:
    """How many clusters run at once on so many SMs, one CTA on each."""
    size = cluster[0] * cluster[1] * cluster[2]
    if multiprocessors and multiprocessors < size:
        raise ValueError(f"trace must be a number of SMs that holds a cluster of {size}, got {multiprocessors}")
    return multiprocessors // size


class Module:
    """Parsed and decoded PTX. Its global variables keep their values from launch to launch."""

    def __init__(self, ptx: str, name: str = "<ptx>"):
        self.name = name
        self._c = _C.EmulatorModule(ptx)
        self.functions = tuple(_function(f) for f in self._c.functions())
        self.kernels = {f.name: f for f in self.functions if f.is_kernel}

    @property
    def unmodelled(self) -> tuple[Unmodelled, ...]:
        return tuple(u for f in self.functions for u in f.unmodelled)

    def kernel(self, name: str) -> Function:
        """The kernel of that name, or the only one whose (mangled) name contains it."""
        if name in self.kernels:
            return self.kernels[name]
        close = [k for k in self.kernels if name in k]
        if len(close) == 1:
            return self.kernels[close[0]]
        raise ValueError(f"{self.name} has no kernel {name!r}; it has {sorted(self.kernels)}")

    def static_shared(self, name: str) -> int:
        return int(self._c.static_shared(self.kernel(name).index))

    def global_address(self, name: str) -> tuple[int, int]:
        """Address and size in bytes of a .global or .const variable."""
        variables = self._c.globals()
        if name not in variables:
            raise ValueError(f"{self.name} has no global variable {name!r}; it has {sorted(variables)}")
        address, size, _ = variables[name]
        return int(address), int(size)

    def launch(
        self,
        name: str,
        *,
        grid: int | Sequence[int] = 1,
        block: int | Sequence[int] = 1,
        cluster: int | Sequence[int] | None = None,
        shared: int = 0,
        args: Sequence[Any] | Mapping[str, Any] = (),
        seed: int = 0,
        checks: str | Collection[str] = "all",
        counters: bool = True,
        max_instructions: int = 0,
        threads: int | None = None,
        buffers: Sequence[Any] = (),
        registers: int = 0,
        trace: int = 0,
        warm: bool = False,
        rough: bool = False,
    ) -> Run:
        """Run a kernel to its end.

        `shared` is dynamic shared memory in bytes; `buffers` are further arrays the kernel may touch (pointers inside
        structures); `max_instructions` bounds the warp instructions of one block; `threads` host threads run blocks.
        `registers` is what a thread has at launch, the start of setmaxnreg's accounts: 0 for what ptxas derives from
        .maxnreg, or .maxntid and .minnctapersm; without them setmaxnreg has no effect.
        `trace` > 0 records, for `tkpy.emulator.timing`, what one place of a machine of that many SMs does; it needs
        counters, and one host thread. It starts with empty caches, or, if `warm`, with all that it may touch in L2.
        `rough`: approximations err by up to what the ISA allows, tensor cores sum as an H100's do (docs/emulator.md).
        Deadlocks, traps and the like raise KernelError; other findings are in the Run.
        """
        function = self.kernel(name)
        config = self._geometry(function, grid, block, cluster, shared)
        if registers and (registers % 8 or not 24 <= registers <= 256):
            raise ValueError(f"registers must be 0, or 24 to 256 in steps of 8, got {registers}")
        block_bytes, ranges = arguments.pack(function.name, function.params, args)
        for i, extra in enumerate(buffers):
            where = arguments.memory_range(extra)
            if where is None:
                raise TypeError(f"buffers[{i}] is no array: {type(extra).__name__}")
            ranges.append(where)
        raw = self._c.launch(
            function.index,
            *config,
            shared,
            block_bytes,
            ranges,
            int(seed) & (2**64 - 1),
            _check_mask(checks),
            counters or trace > 0,
            max_instructions,
            threads or os.cpu_count() or 1,
            registers,
            _slots(trace, config[2]),
            warm,
            rough,
        )
        run = Run(function.name, raw, self._c.listing, [f.name for f in self.functions])
        if trace:
            static = int(self._c.static_shared(function.index))
            run.geometry = Geometry(*config, static + shared, _slots(trace, config[2]))
        if run.fatal:
            raise KernelError(run.findings, run.output)
        return run

    def _geometry(
        self, f: Function, grid: Any, block: Any, cluster: Any, shared: int
    ) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]:
        g = _dim3("grid", grid, (2**31 - 1, 65535, 65535))
        b = _dim3("block", block, (1024, 1024, 64))
        c = _dim3("cluster", cluster if cluster is not None else f.required_cluster or 1, (16, 16, 16))
        threads = b[0] * b[1] * b[2]
        if threads > 1024:
            raise ValueError(f"a block has at most 1024 threads, got {threads}")
        if f.required_threads and b != f.required_threads:
            raise ValueError(f"{f.name} requires block={f.required_threads} (.reqntid), got {b}")
        if f.max_threads and threads > f.max_threads[0] * f.max_threads[1] * f.max_threads[2]:
            raise ValueError(f"{f.name} allows {f.max_threads} threads (.maxntid), got {threads}")
        if f.required_cluster and c != f.required_cluster:
            raise ValueError(f"{f.name} requires cluster={f.required_cluster}, got {c}")
        if c[0] * c[1] * c[2] > 16:
            raise ValueError(f"a cluster has at most 16 blocks, got {c}")
        if any(n % m for n, m in zip(g, c, strict=True)):
            raise ValueError(f"grid {g} is not a multiple of cluster {c}")
        static = int(self._c.static_shared(f.index))
        if shared < 0 or static + shared > MAX_SHARED:
            raise ValueError(f"shared memory: {static} static + {shared} dynamic bytes, at most {MAX_SHARED}")
        return g, b, c


def read_text(path: Path) -> str:
    """The PTX of a file; `<name>.gz` serves for a `<name>` that is not there, as in an installed package."""
    if path.suffix != ".gz" and not path.exists():
        packed = path.with_name(f"{path.name}.gz")
        path = packed if packed.exists() else path
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return data.decode("utf-8", errors="backslashreplace").replace("\r\n", "\n")


def load(ptx: str | os.PathLike[str]) -> Module:
    """Load PTX text, or the file at a path (.ptx, .ptx.gz). A malformed text raises ValueError with its line."""
    if isinstance(ptx, os.PathLike):
        return Module(read_text(Path(ptx)), str(ptx))
    if not isinstance(ptx, str):
        raise TypeError(f"load() takes PTX text or a path, got {type(ptx).__name__}")
    if "\n" not in ptx and ptx.endswith((".ptx", ".ptx.gz")):
        return Module(read_text(Path(ptx)), ptx)
    return Module(ptx)
