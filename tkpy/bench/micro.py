"""Microbenchmarks: one small kernel of csrc/microbench a question, launched with counts that make it long enough.

A `Micro` names the kernel and makes its `Plan`: sizes, arguments, and how clocks become the number. A plan is made for
a `Place`: in full for timing, or small, with whole numbers as data, for checking. The same small plan is the gate
before a row is timed on a GPU, and what the tests run in the emulator, where counters prove that the loop holds what it
claims.

Every kernel's first parameters are its records (the SM's clock, the global timer and the SM, one record a CTA) and its
sink (one word a thread that depends on all that was computed).
"""

from __future__ import annotations

import functools
import statistics
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tkpy import build_info, published
from tkpy import machine as machines
from tkpy.bench.spec import Benchmark, Count, Environment, Subject, spec_files
from tkpy.errors import InternalError, Refusal, Unsupported
from tkpy.numerics import Comparison, compare

RECORD_WORDS = 5  # 64-bit: clocks before and after, nanoseconds before and after, SM


@dataclass(frozen=True)
class Place:
    """Where a plan will run. `small`: a few iterations on whole numbers, of which the result is known; `brief` > 0: a
    full plan but for its length and footprint, which the model of time can replay; 2 has twice the work of 1."""

    device: torch.device
    multiprocessors: int
    small: bool = False
    brief: int = 0

    def times(self, full: int, small: int, brief: int = 8) -> int:
        """An iteration count."""
        return small if self.small else brief * self.brief or full

    def pieces(self, footprint: int, piece: int) -> int:
        """How many pieces of `piece` bytes a buffer of `footprint` bytes has."""
        return 12 if self.small else 64 * self.brief or max(footprint // piece, 1)

    def ctas(self, per_sm: int = 1) -> int:
        """CTAs that fill the machine; two of them in a small plan."""
        return 2 * per_sm if self.small else self.multiprocessors * per_sm


@dataclass(frozen=True)
class Wide:
    """A 64-bit argument; plain ints are 32-bit ones."""

    value: int


@dataclass(frozen=True)
class Struct:
    """A structure of 32-bit words."""

    words: tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """A tensor map: the box in the tensor's own order of dimensions, outermost first."""

    tensor: torch.Tensor
    box: tuple[int, ...]
    swizzle: int = 0


Argument = torch.Tensor | int | Wide | Struct | Map


class Records:
    """What the CTAs' stopwatches said."""

    def __init__(self, words: torch.Tensor):
        self.words = words.reshape(-1, RECORD_WORDS).cpu().tolist()

    @property
    def clocks(self) -> float:
        """Cycles from the first to the last instruction of the loop: the median over CTAs."""
        return statistics.median(after - before for before, after, *_ in self.words)

    @property
    def first_clocks(self) -> float:
        """The same, of CTA 0."""
        return float(self.words[0][1] - self.words[0][0])

    @property
    def seconds(self) -> float:
        """From the first CTA's start to the last one's end."""
        return 1e-9 * (max(r[3] for r in self.words) - min(r[2] for r in self.words))


@dataclass(frozen=True)
class Plan:
    """One launch. `value` turns records into the number; `want` is what the sink (or `result()`) must hold, exactly
    unless `tolerance` says otherwise; `counters` are the issues that the emulator must count between the clocks, by the
    instruction's first characters, `wavefronts` the passes through shared memory."""

    args: Sequence[Argument]
    value: Callable[[Records], float]
    grid: int = 1
    block: int = 32
    cluster: int = 1
    shared: int = 0
    cooperative: bool = False  # its CTAs wait for each other: all must be resident at once
    want: torch.Tensor | None = None
    result: Callable[[torch.Tensor], torch.Tensor] = lambda sink: sink
    tolerance: float = 0.0
    counters: Mapping[str, int] = field(default_factory=dict)
    wavefronts: Mapping[str, int] = field(default_factory=dict)
    before: Callable[[], object] | None = None  # submitted before each launch: evicts caches, fills buffers
    cold: bool = False  # what it reads is not in L2 when it starts
    touches: tuple[torch.Tensor, ...] = ()  # what the kernel reaches by pointers within its arguments

    def outputs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh records and sink."""
        return (
            torch.zeros(self.grid * RECORD_WORDS, dtype=torch.int64, device=device),
            torch.full((self.grid * self.block,), -1, dtype=torch.int32, device=device),
        )

    def check(self, sink: torch.Tensor) -> Comparison:
        """Whether a small plan's result is what it must be."""
        if self.want is None:
            raise InternalError("a plan without an expected result cannot be checked")
        return compare(self.result(sink), self.want, self.tolerance)


Maker = Callable[[Place], Plan]


def pack(args: Sequence[Argument], encode: Callable[[Map], bytes]) -> bytes:
    """A kernel's parameter block: every argument at its own alignment."""
    block = bytearray()
    for arg in args:
        if isinstance(arg, Map):
            raw, align = encode(arg), 64
        elif isinstance(arg, torch.Tensor):
            raw, align = struct.pack("<Q", arg.data_ptr()), 8
        elif isinstance(arg, Wide):
            raw, align = struct.pack("<Q", arg.value), 8
        elif isinstance(arg, Struct):
            raw, align = struct.pack(f"<{len(arg.words)}I", *arg.words), 4
        else:
            raw, align = struct.pack("<I", arg & 0xFFFFFFFF), 4
        block += bytes(-len(block) % align) + raw
    return bytes(block)


class Launcher:
    """Launches on a `tkpy._C.Machine`; on the CUDA driver on torch's current stream, without waiting."""

    def __init__(self, machine: Any):
        self._machine = machine

    def encode(self, tensor_map: Map) -> bytes:
        found: bytes = self._machine.encode(machines.view(tensor_map.tensor), list(tensor_map.box), tensor_map.swizzle)
        return found

    def launch(
        self, module: str, kernel: str, args: Sequence[Argument], device: torch.device, *, grid: int, block: int,
        cluster: int = 1, shared: int = 0, dependent: bool = False, cooperative: bool = False,
    ) -> None:  # fmt: skip
        """`dependent`: programmatic dependent launch, may begin before the kernel before has ended; `cooperative`: only
        if all CTAs can be resident at once."""
        tensors = [arg.tensor if isinstance(arg, Map) else arg for arg in args]
        self._machine.launch_kernel(
            module=module, kernel=kernel, grid=grid, block=block, cluster=cluster, shared=shared,
            params=pack(args, self.encode), views=[machines.view(t) for t in tensors if isinstance(t, torch.Tensor)],
            stream=torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0,
            device=device.index or 0, dependent=dependent, cooperative=cooperative,
        )  # fmt: skip


@functools.cache
def driver() -> Launcher:
    """The CUDA driver with tkpy's own kernels."""
    return Launcher(machines.compiled().Machine.driver(str(build_info.KERNELS)))


@dataclass(frozen=True)
class Micro:
    """One question about the machine.

    Args:
        name: unique, group first.
        question: one sentence.
        unit: of the number: clk, ns, B/clk/SM, op/clk/SM, GB/s, TFLOP/s.
        module, kernel: `csrc/microbench/<module>.cu`, and the kernel's name in it.
        plan: the launch, for a place.
        published: ids of figures that measured the same.
        rank: rows of a lower rank come first.
        modelled: False where the model of time has nothing to say.
    """

    name: str
    question: str
    unit: str
    module: str
    kernel: str
    plan: Maker
    shapes: Mapping[str, int | str | bool] = field(default_factory=dict)
    inputs: str = "does not matter"
    dtype: str = ""
    published: tuple[str, ...] = ()
    rank: int = 100
    modelled: bool = True

    @property
    def image(self) -> str:
        """The module's name in tkpy/kernels."""
        return f"microbench_{self.module}"

    def launch(self, plan: Plan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The plan on the driver; records and sink, which are ready when the stream is."""
        records, sink = plan.outputs(device)
        args = [records, sink, *plan.args]
        if plan.before is not None:
            plan.before()
        driver().launch(self.image, self.kernel, args, device, grid=plan.grid, block=plan.block, cluster=plan.cluster,
                        shared=plan.shared, cooperative=plan.cooperative)  # fmt: skip
        return records, sink

    def prepare(self, env: Environment) -> Subject:
        """The row's call: the full plan. Its gate: the small plan gives the right result."""
        require_gpu(self.image, env.device)
        sms = torch.cuda.get_device_properties(env.device).multi_processor_count
        plan = self.plan(Place(env.device, sms, small=False))

        def gate(output: tuple[torch.Tensor, torch.Tensor]) -> Comparison:
            small = self.plan(Place(env.device, sms, small=True))
            _, sink = self.launch(small, env.device)
            torch.cuda.synchronize(env.device)
            return small.check(sink)

        return Subject(
            inputs=plan,
            ours={"cuda": lambda: self.launch(plan, env.device)},
            gate=gate,
            read=lambda output: plan.value(Records(output[0])),
            notes={"launch": {"grid": plan.grid, "block": plan.block, "cluster": plan.cluster, "shared": plan.shared}},
        )

    def benchmark(self) -> Benchmark:
        """The row that `tkpy bench micro` times."""
        return Benchmark(
            name=self.name, suite="micro", what=self.question, shapes=self.shapes, inputs=self.inputs,
            prepare=self.prepare, unit=self.unit, dtype=self.dtype, published=self.published, rank=self.rank,
            count=self.count,
        )  # fmt: skip

    def count(self) -> Count:
        """For `--counters`."""
        from tkpy.bench import emulated  # needs the compiled emulator, which timing does not

        require_built(self.image)
        return emulated.count(self)


def every_micro() -> Iterator[Micro]:
    """All of `tkpy/bench/specs/micro_*.py`, but launches, which are more than a kernel."""
    for module in spec_files():
        if hasattr(module, "micros"):
            yield from module.micros()


def known_figures(ids: Iterable[str]) -> tuple[str, ...]:
    """Those ids that tkpy/bench/published has a figure of."""
    return tuple(i for i in ids if i in published.figures())


def eviction(place: Place) -> Callable[[], object]:
    """Reads four times the L2's size of other memory: what was in L2 no longer is."""
    other = torch.zeros(1 if place.small else 50 << 20, dtype=torch.int32, device=place.device)
    return lambda: torch.amax(other)


def require_built(image: str) -> None:
    """Unsupported unless the module can run in the emulator."""
    if reasons := machines.refusals(image, "emulator", torch.device("cpu")):
        raise Unsupported("bench", {"emulator": reasons})


def require_gpu(image: str, device: torch.device) -> None:
    """Unsupported unless the module can run on this device."""
    if reasons := machines.refusals(image, "cuda", device):
        raise Unsupported("bench", {"cuda": reasons})
    if not hasattr(machines.compiled().Machine, "launch_kernel"):
        raise Unsupported("bench", {"cuda": [Refusal("not_built", "tkpy._C is older than this Python code")]})
