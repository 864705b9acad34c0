"""Benchmarks of ops: one row for each size, from a spec file of `specs`, or from the op's own table of cases.

An op without a spec file is timed on its cases marked `bench`, in bfloat16. A spec file names what its rows vary:

    LINEAR = OpRows(
        op="linear", sizes=("m", "n", "k"),
        make=lambda maker, m, n, k: {"x": maker.randn(m, k), "weight": maker.randn(n, k, scale=k**-0.5)},
        rows=tuple({"m": n, "n": n, "k": n} for n in (1024, 4096)),
        peers=(Peer("cuBLAS", ...),),
    )
    BENCHMARKS = LINEAR.benchmarks()

and then `tkpy bench ops --op linear --shape 2048x4096x512` (or m=2048,n=4096,k=512) makes a row of any other size.

Sizes in `trained` have rows of the backward and of both passes together; ideal flops of a backward are `backward` times
the forward's, ideal bytes those of the forward and once more those of the arguments that get gradients. Peers with
`differentiable` are timed there too.

`tkpy bench ops --counters` runs the sizes in `counted`, small ones, in the emulator: with the backward where the op's
kernels have one. What it counts is held to the `Promise` of each (tests/kernels/test_counters.py).

Ours are the backends `cuda` and `triton`; `reference` and `eager` are never timed as ours. The eager form is a peer,
under the name "torch eager": it is PyTorch's own kernels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tkpy import machine, registry
from tkpy.bench.kernel_counts import STRICT, Promise, works
from tkpy.bench.passes import cotangents, leaves_of, outputs_of, part, with_leaves
from tkpy.bench.spec import Benchmark, Count, Environment, Peer, Subject, spec_files
from tkpy.conformance import map_tensors
from tkpy.errors import InternalError
from tkpy.numerics import TOLERANCE, Comparison, compare
from tkpy.registry import Maker, Op

DTYPES = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
}  # fmt: skip
NORMAL = "standard normal, rounded to the dtype"

#: The backward alone stands beside its forward; both together, which say less, come after everything else.
PASS_RANK = {"forward": 0, "backward": 0, "forward+backward": 200}

Kwargs = dict[str, Any]
Sizes = Mapping[str, int]


class DeviceMaker(Maker):
    """A `Maker` that draws on the device: other numbers than the tests', but large tensors in no time."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0):
        super().__init__(dtype, device, seed)
        if device.type == "cuda":
            self.generator = torch.Generator(device).manual_seed(seed)

    def _made(self, value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        return value.to(dtype or self.dtype)

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._made(torch.randn(*shape, generator=self.generator, device=self.device).mul_(scale), dtype)

    def uniform(self, low: float, high: float, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        drawn = torch.rand(*shape, generator=self.generator, device=self.device)
        return self._made(drawn.mul_(high - low).add_(low), dtype)

    def randint(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)


def eager(op: Op) -> Peer:
    """The op's eager form: PyTorch's kernels, put together."""
    return Peer("torch eager", lambda kwargs: lambda: op.public(**kwargs, backend="eager"))


def compiled(form: Callable[..., Any]) -> Peer:
    """`form(**kwargs)`, which is plain PyTorch, as torch.compile fuses it."""

    def build(kwargs: Kwargs) -> Callable[[], Any]:
        torch.compiler.reset()  # every row compiles anew: after a few sizes torch.compile would give up
        call = torch.compile(form, dynamic=False)
        return lambda: call(**kwargs)

    return Peer("torch.compile", build)


def ours(op: Op, kwargs: Kwargs, env: Environment) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Our calls by backend, and why the other backends of ours cannot serve this call."""
    call = registry.capture(op, kwargs)
    calls: dict[str, Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    for backend in env.ours:
        reasons = op.refusals(backend, call)
        if reasons:
            refused[backend] = "; ".join(map(str, reasons))
        else:
            calls[backend] = functools.partial(op.public, **kwargs, backend=backend)
    return calls, refused


def _widened(kwargs: Kwargs) -> Kwargs:
    """Floating tensors as float64, complex ones as complex128; autograd sees it."""
    wide: Kwargs = map_tensors(
        kwargs, lambda t: t.to(torch.complex128) if t.is_complex() else t.double() if t.is_floating_point() else t
    )
    return wide


def reference(op: Op, kwargs: Kwargs) -> Any:
    """What the op's float64 reference makes of these inputs."""
    return op.public(**_widened(kwargs), backend="reference")


def in_float64(op: Op, kwargs: Kwargs) -> Any:
    """What the op's eager form makes of these inputs in float64, which the tests hold to the reference within 1e-10.

    The reference itself goes from token to token and holds all scores: at the rows' sizes its gradients, and the values
    of some, would take minutes and more memory than a GPU has.
    """
    return op.public(**_widened(kwargs), backend="eager")


Expect = Callable[[Op, Kwargs], Any]


def _expected(op: Op, kwargs: Kwargs, expect: Expect, which: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """What `expect` gives in float64, or the gradients of the inputs."""
    if which == "forward":
        with torch.no_grad():
            return outputs_of(expect(op, kwargs))
    wide = with_leaves(_widened(kwargs))
    return list(part(lambda: in_float64(op, wide), wide, which, dtype)())


def _gate(
    op: Op, kwargs: Kwargs, tolerance: float, expect: Expect, which: str, dtype: torch.dtype
) -> Callable[[Any], Comparison]:
    """Judges what a call returned by what float64 gives on the same inputs, which is computed once."""
    expected: list[torch.Tensor] = []

    def gate(output: Any) -> Comparison:
        if not expected:
            expected.extend(_expected(op, kwargs, expect, which, dtype))
        found = outputs_of(output)
        if len(found) != len(expected):
            raise InternalError(f"{op.name}: {len(found)} outputs, the reference has {len(expected)}")
        compared = [compare(a, b, tolerance) for a, b in zip(found, expected, strict=True)]
        return max(compared, key=lambda c: (not c.ok, c.relative))

    return gate


def _cost(op: Op, kwargs: Kwargs, which: str, backward: float) -> tuple[int, int]:
    """Ideal flops and bytes of a pass."""
    call = registry.capture(op, kwargs)
    flops, nbytes = op.flops(call), op.nbytes(call)
    gradients = sum(t.numel() * t.element_size() for t in leaves_of(kwargs))
    factor = {"forward": 1.0, "backward": backward, "forward+backward": 1 + backward}[which]
    moved = {"forward": nbytes, "backward": nbytes + gradients, "forward+backward": 2 * nbytes + gradients}[which]
    return round(factor * flops), moved


def prepare(
    op: Op,
    make: Callable[[Maker], Kwargs],
    dtype: torch.dtype,
    tol: float,
    expect: Expect = reference,
    which: str = "forward",
    backward: float = 2.0,
) -> Callable[[Environment], Subject]:
    """Inputs on the environment's device, our backends there, the reference as the gate, the op's own ideal cost."""

    def ready(env: Environment) -> Subject:
        kwargs = make(DeviceMaker(dtype, env.device))
        kwargs = kwargs if which == "forward" else with_leaves(kwargs)
        calls, refused = ours(op, kwargs, env)
        calls = {name: part(call, kwargs, which, dtype) for name, call in calls.items()}
        gate = _gate(op, kwargs, TOLERANCE[dtype] * tol, expect, which, dtype)
        flops, nbytes = _cost(op, kwargs, which, backward)
        # A graph cannot hold the backward of a forward that ran outside it.
        graphs = which != "backward"
        return Subject(kwargs, calls, gate, refused=refused, flops=flops, nbytes=nbytes, graphs=graphs)

    return ready


def count(
    op: Op,
    make: Callable[[Maker], Kwargs],
    sizes: Mapping[str, Any],
    dtype: torch.dtype,
    tol: float,
    which: str = "forward",
    backward: float = 2.0,
    promise: Promise | None = None,
    expect: Expect = reference,
) -> Callable[[], Count]:
    """Runs the op's CUDA kernels of one pass in the emulator, with counters."""

    def run() -> Count:
        kwargs = make(Maker(dtype))
        kwargs = kwargs if which == "forward" else with_leaves(kwargs)
        op.resolve(registry.capture(op, kwargs), "emulator")  # raises Unsupported, with every reason
        call = functools.partial(op.public, **kwargs, backend="emulator")
        if which == "backward":
            outputs = outputs_of(call())
            call = functools.partial(
                torch.autograd.grad, outputs, leaves_of(kwargs), cotangents(outputs, dtype), allow_unused=True
            )
        with machine.counting() as counted:
            output = call()
        gate = _gate(op, kwargs, TOLERANCE[dtype] * tol, expect, which, dtype)(output)
        flops, nbytes = _cost(op, kwargs, which, backward)
        done = counted()
        total = dataclasses.asdict(machine.total(done))
        return Count(sizes, total, gate, flops, nbytes, kernels=tuple(works(done)), promise=promise)

    return run


def _differentiated(peer: Peer, which: str, dtype: torch.dtype) -> Peer:
    """Another pass of a peer."""
    return dataclasses.replace(peer, build=lambda kwargs: part(peer.build(kwargs), kwargs, which, dtype))


def _has_kernel(name: str, function: str) -> bool:
    """Whether the op's CUDA backend has this function."""
    op = registry.get(name)
    return "cuda" in op.available and hasattr(op.module("cuda"), function)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def from_cases(op: Op, names: Sequence[str] | None = None, dtype: torch.dtype = torch.bfloat16) -> list[Benchmark]:
    """Rows of the op's cases marked `bench`, or of those named."""
    wanted = [c for c in op.cases if (c.bench if names is None else c.name in names)]
    return [
        Benchmark(
            name=f"{op.name}/{case.name}/{_named(dtype)}",
            suite="ops",
            what=case.why,
            shapes={"case": case.name},
            inputs=f"the case's own, drawn anew: mostly {NORMAL}",
            prepare=prepare(op, case.make, dtype, case.tol),
            dtype=_named(dtype),
            peers=(eager(op),),
            rank=200,
            count=count(op, op.cases[0].make, {"case": op.cases[0].name}, dtype, op.cases[0].tol),
        )
        for case in wanted
    ]


@dataclass(frozen=True)
class Counted:
    """A small case for the emulator, and what it is held to; `backward`: its backward too, None leaves that out."""

    sizes: Sizes
    promise: Promise = STRICT
    backward: Promise | None = STRICT


@dataclass(frozen=True)
class OpRows:
    """Rows of one op by sizes. `make(maker, **sizes)` gives the public function's keyword arguments.

    `peers` are timed beside ours, and the op's eager form after them unless `eager` is False; `rank` and `published`
    are functions of a row's sizes; `defaults` are sizes that may be left out of --shape; `counted` are cases for
    --counters, the first row within the bounds of `small` where there are none; `label` names a row by its sizes;
    `expect(op, kwargs)` computes the outputs in float64, for sizes at which the whole reference would take too long or
    not fit (of gradients, always `in_float64`); `trained` are the sizes that have rows of the backward, the first row
    where it is None.
    """

    op: str
    sizes: tuple[str, ...]
    make: Callable[..., Kwargs]
    rows: tuple[Sizes, ...]
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    peers: tuple[Peer, ...] = ()
    unit: str = "ms"
    inputs: str = NORMAL
    what: str = ""
    eager: bool = True
    label: Callable[[Sizes], str] | None = None
    expect: Callable[[Op, Kwargs], Any] = reference
    tol: float = 1.0
    rank: Callable[[Sizes], int] = lambda sizes: 100
    published: Callable[[Sizes, str], tuple[str, ...]] = lambda sizes, dtype: ()
    defaults: Sizes = field(default_factory=dict)
    small: Sizes = field(default_factory=dict)
    counted: tuple[Counted, ...] = ()
    trained: tuple[Sizes, ...] | None = None
    backward: float = 2.0

    def row(self, sizes: Sizes, dtype: str, which: str = "forward", promise: Promise | None = None) -> Benchmark:
        """The benchmark of one size; --counters takes it as it is, however long that is."""
        full = {**self.defaults, **sizes}
        op = registry.get(self.op)
        label = self.label(full) if self.label is not None else "x".join(str(full[name]) for name in self.sizes)
        forward = which == "forward"
        what = self.what if forward else f"{which} of {self.what}"
        peers = (*self.peers, *([eager(op)] if self.eager else []))

        def make(maker: Maker) -> Kwargs:
            return self.make(maker, **full)

        return Benchmark(
            name=f"{self.op}/{label if forward else f'{which} {label}'}/{dtype}",
            suite="ops",
            what=what,
            shapes=full,
            inputs=self.inputs,
            prepare=prepare(op, make, DTYPES[dtype], self.tol, self.expect, which, self.backward),
            unit=self.unit,
            dtype=dtype,
            peers=peers
            if forward
            else tuple(_differentiated(p, which, DTYPES[dtype]) for p in peers if p.differentiable),
            published=self.published(full, dtype) if forward else (),
            rank=self.rank(full) + PASS_RANK[which],
            count=count(op, make, full, DTYPES[dtype], self.tol, which, self.backward, promise, self.expect),
        )

    def benchmarks(self) -> list[Benchmark]:
        """All rows in all dtypes."""
        trained = self.rows[:1] if self.trained is None else self.trained
        passes = [(self.rows, "forward"), (trained, "backward"), (trained, "forward+backward")]
        return [
            self.row(sizes, dtype, which)
            for rows, which in passes
            for sizes, dtype in itertools.product(rows, self.dtypes)
        ]

    def counted_rows(self) -> list[Benchmark]:
        """What --counters runs where it is given no sizes, in the first dtype."""
        first = {**self.defaults, **self.rows[0]}
        cases = self.counted or (
            Counted({name: min(size, self.small.get(name, size)) for name, size in first.items()}),
        )
        found = []
        for case in cases:
            found.append(self.row(case.sizes, self.dtypes[0], "forward", case.promise))
            if case.backward is not None and self.trained != () and _has_kernel(self.op, "backward"):
                found.append(self.row(case.sizes, self.dtypes[0], "backward", case.backward))
        return found

    def parse(self, text: str) -> dict[str, int]:
        """`4096x4096x512`, or `m=4096,n=4096,k=512`; ValueError says what is needed."""
        needed = "x".join(name.upper() for name in self.sizes)
        if re.fullmatch(r"\d+(x\d+)*", text):
            numbers = [int(n) for n in text.split("x")]
            sizes = dict(zip(self.sizes, numbers, strict=False))
            if len(numbers) > len(self.sizes):
                raise ValueError(f"--shape of {self.op} is {needed}, got {len(numbers)} sizes")
        elif re.fullmatch(r"\w+=\d+(,\w+=\d+)*", text):
            sizes = {name: int(n) for name, n in (part.split("=") for part in text.split(","))}
        else:
            raise ValueError(f"--shape of {self.op} is {needed} in numbers, got {text!r}")
        if unknown := sorted(set(sizes) - set(self.sizes)):
            raise ValueError(f"{self.op} has no size {', '.join(unknown)}; its sizes are {needed}")
        if missing := [name for name in self.sizes if name not in {**self.defaults, **sizes}]:
            raise ValueError(f"--shape of {self.op} is {needed}; {', '.join(missing)} is missing in {text!r}")
        return sizes


def every_spec() -> list[OpRows]:
    """The `OpRows` of every spec file."""
    return [value for module in spec_files() for value in vars(module).values() if isinstance(value, OpRows)]


def by_op() -> dict[str, OpRows]:
    """The `OpRows` that an op's name stands for: of several the first, in the file that is named first."""
    found: dict[str, OpRows] = {}
    for spec in every_spec():
        found.setdefault(spec.op, spec)
    return found


def counted_rows() -> list[Benchmark]:
    """What --counters runs: the cases of each op's first `OpRows`, and of others that name some."""
    first = by_op()
    return [b for s in every_spec() if s is first[s.op] or s.counted for b in s.counted_rows()]
