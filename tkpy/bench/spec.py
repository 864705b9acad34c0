"""What a benchmark is: one `Benchmark` a row of work, declared in `tkpy/bench/specs/*.py` and found by being there.

A file of `specs` holds `BENCHMARKS`, a sequence of `Benchmark`, or a function `benchmarks()` that returns one. Adding
rows edits no existing file.

    Benchmark(
        name="copy/1 GiB", suite="micro", what="How fast HBM is read and written.",
        shapes={"bytes": 1 << 30}, inputs="zeros", unit="GB/s", nbytes=2 << 30,
        prepare=lambda env: Subject(
            inputs=(x := torch.zeros(1 << 28, device=env.device)),
            ours={"cuda": lambda: our_copy(x)},
            gate=lambda out: numerics.compare(out, x, 0.0),
        ),
        peers=(Peer("torch", lambda x: x.clone),),
    )

`prepare` runs just before the row is timed, so that inputs live no longer than their row. Each call of `ours` and of
the peers is a launch on the current stream that returns its output, and `gate` judges that output: a call whose
output does not pass is never timed. A kernel that times itself (clock64 in the kernel) gives `read`, which turns its
output into one sample in the benchmark's unit; all other calls are timed from outside by the environment's timer.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.timer import Timer
from tkpy.errors import InternalError
from tkpy.numerics import Comparison

SUITES = ("micro", "ops", "models")

#: Units of a row and how seconds become them; any other unit (clk, B/clk, ns) needs `Subject.read`.
RATES: dict[str, Callable[[Benchmark, float], float]] = {
    "ms": lambda benchmark, seconds: 1e3 * seconds,
    "us": lambda benchmark, seconds: 1e6 * seconds,
    "TFLOP/s": lambda benchmark, seconds: benchmark.flops / seconds / 1e12,
    "GB/s": lambda benchmark, seconds: benchmark.nbytes / seconds / 1e9,
}
#: Units in which less is better; in all others more is.
LOWER_IS_BETTER = ("ms", "us", "ns", "clk")


@dataclass(frozen=True)
class Peer:
    """Other people's code for the same work. `needs`: a module that must be importable; absent peers are left out.

    `build(inputs)` imports what it needs and returns the call; a `RuntimeError` or `NotImplementedError` from it or
    from the call is a refusal (the peer cannot do this shape) and is recorded.
    """

    name: str
    build: Callable[[Any], Callable[[], Any]]
    needs: str = ""
    differentiable: bool = True  # its outputs have gradients with respect to all inputs that want one

    def missing(self) -> str | None:
        """Why this peer is not here, in words; None when it is."""
        try:
            found = not self.needs or importlib.util.find_spec(self.needs) is not None
        except ModuleNotFoundError:  # a submodule of a package that is absent
            found = False
        return None if found else f"{self.needs} is not installed"


@dataclass(frozen=True)
class Subject:
    """A benchmark made ready: its inputs, our calls by name, the gate.

    `refused`: calls of ours that cannot serve, and why. `flops` and `nbytes`: the ideal cost where it is known only
    once the inputs are. `notes` are copied into the rows. `graphs`: calls may be captured in a CUDA graph.
    """

    inputs: Any
    ours: Mapping[str, Callable[[], Any]]
    gate: Callable[[Any], Comparison]
    read: Callable[[Any], float] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    flops: int | None = None
    nbytes: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    graphs: bool = True


@dataclass(frozen=True)
class Environment:
    """Where benchmarks run: the device, the clock, and which backends may be timed as ours."""

    device: torch.device
    timer: Timer
    ours: tuple[str, ...] = ("cuda", "triton")
    facts: Mapping[str, Any] = field(default_factory=dict)
    condition: Callable[[], Mapping[str, Any]] = dict
    alive: Callable[[], object] = lambda: None  # raises RuntimeError if the device no longer answers


@dataclass(frozen=True)
class Count:
    """What our kernels did in the emulator, on these sizes: counters, the gate's word on the result, what a model of
    time predicts (value, unit, device, binding, label), and of an op, what each kernel did (`KernelWork`) and what they
    are held to."""

    shapes: Mapping[str, int | str | bool]
    counters: Mapping[str, int]
    gate: Comparison
    flops: int
    nbytes: int
    predicted: Mapping[str, Any] | None = None
    kernels: tuple[Mapping[str, Any], ...] = ()
    promise: Promise | None = None


@dataclass(frozen=True)
class Benchmark:
    """One row of work.

    Args:
        name: unique, `group/what/dtype`; rows of two files are matched by it.
        suite: "micro", "ops" or "models".
        what: one sentence, the question that the row answers.
        shapes: sizes, for people and for plots.
        inputs: the distribution of the inputs' values: power, and so speed, depends on it.
        prepare: makes the inputs and the calls; see the module's text.
        unit: of the value: a key of `RATES`, or any other with `Subject.read`.
        flops, nbytes: the ideal cost of one call, which the roof is computed from; 0: not said.
        dtype: of the operands: which roof of the arithmetic applies.
        peers: other implementations, timed in turn with ours.
        published: ids of figures in `tkpy/bench/published` that measured the same.
        rank: rows of a lower rank come first.
        count: runs our kernel in the emulator, on sizes that it can do, for `--counters`.
        group: rows that belong together in a table and a plot; the part of the name before the first "/".
    """

    name: str
    suite: str
    what: str
    shapes: Mapping[str, int | str | bool]
    inputs: str
    prepare: Callable[[Environment], Subject]
    unit: str = "ms"
    flops: int = 0
    nbytes: int = 0
    dtype: str = ""
    peers: tuple[Peer, ...] = ()
    published: tuple[str, ...] = ()
    rank: int = 100
    count: Callable[[], Count] | None = None

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    def value(self, seconds: float) -> float:
        """Seconds of one call in the benchmark's unit."""
        if self.unit not in RATES:
            raise InternalError(f"benchmark {self.name}: unit {self.unit} needs Subject.read")
        return RATES[self.unit](self, seconds)


def spec_files(package: str = "tkpy.bench.specs") -> Iterator[ModuleType]:
    """The modules of the package, in order of their names."""
    path = importlib.import_module(package).__path__
    for entry in sorted(pkgutil.iter_modules(path), key=lambda m: m.name):
        yield importlib.import_module(f"{package}.{entry.name}")


def discover(package: str = "tkpy.bench.specs") -> Iterator[Benchmark]:
    """Every benchmark of every file of the package, in order of rank; names are unique."""
    found: dict[str, Benchmark] = {}
    for module in spec_files(package):
        if not hasattr(module, "BENCHMARKS") and not hasattr(module, "benchmarks"):
            raise InternalError(f"{module.__name__} must define BENCHMARKS or benchmarks()")
        for benchmark in module.BENCHMARKS if hasattr(module, "BENCHMARKS") else module.benchmarks():
            if benchmark.name in found:
                raise InternalError(f"two benchmarks are called {benchmark.name}; one is in {module.__name__}")
            if benchmark.suite not in SUITES:
                raise InternalError(f"benchmark {benchmark.name}: no suite {benchmark.suite}")
            found[benchmark.name] = benchmark
    yield from sorted(found.values(), key=lambda b: b.rank)


def select(benchmarks: list[Benchmark], patterns: tuple[str, ...]) -> list[Benchmark]:
    """Those whose name is, begins with (at a "/") or contains a pattern; ValueError for a pattern that matches none."""
    if not patterns:
        return benchmarks
    for pattern in patterns:
        if not any(pattern in b.name for b in benchmarks):
            groups = ", ".join(dict.fromkeys(b.group for b in benchmarks)) or "none here"
            raise ValueError(f"no benchmark's name contains {pattern!r}; the groups are {groups}")
    return [b for b in benchmarks if any(p in b.name for p in patterns)]
