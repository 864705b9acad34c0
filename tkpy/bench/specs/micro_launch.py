"""What a launch costs: from the host, on the device, in a graph, with a cluster; what lies between two kernels, with
and without programmatic dependent launch."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tkpy.bench.micro import driver, require_gpu
from tkpy.bench.spec import Benchmark, Environment, Subject
from tkpy.numerics import Comparison, compare

IMAGE = "microbench_launch"
LAUNCHES = 100
STAMP_WORDS = 3  # first instruction, allowed to go on, end
BUSY = 20_000  # cycles of a stamped kernel: longer than its launch


@dataclass
class Result:
    """What a call leaves for `read`: seconds on the host's clock and two events, or the stamps of all its kernels."""

    host: float = 0.0
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    stamps: torch.Tensor | None = None
    sink: torch.Tensor | None = None

    def device_us(self) -> float:
        """Microseconds of a launch, between the events."""
        assert self.events is not None
        return 1e3 * self.events[0].elapsed_time(self.events[1]) / LAUNCHES

    def host_us(self) -> float:
        """Microseconds of a launch, of the host."""
        return 1e6 * self.host / LAUNCHES

    def gap_ns(self) -> float:
        """Nanoseconds from the end of a kernel to the moment when the next may go on: the median."""
        assert self.stamps is not None
        return gap(self.stamps)


def gap(stamps: torch.Tensor) -> float:
    """The median of `released` less the `last` before, over stamps [launches, 3]."""
    rows = stamps.cpu().reshape(-1, STAMP_WORDS).tolist()
    return float(statistics.median(after[1] - before[2] for before, after in itertools.pairwise(rows)))


def _launch_empty(device: torch.device, cluster: int) -> None:
    driver().launch(IMAGE, "empty", [], device, grid=cluster, block=32, cluster=cluster)


def _empties(device: torch.device, cluster: int, graph: bool) -> Callable[[], Result]:
    def all_of_them() -> None:
        for _ in range(LAUNCHES):
            _launch_empty(device, cluster)

    replay = all_of_them
    if graph:
        captured = torch.cuda.CUDAGraph()
        _launch_empty(device, cluster)  # loads the module, which a capture must not
        torch.cuda.synchronize(device)
        with torch.cuda.graph(captured):
            all_of_them()
        replay = captured.replay

    def call() -> Result:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        begin = time.perf_counter()
        replay()
        host = time.perf_counter() - begin
        end.record()
        return Result(host, (start, end))

    return call


def _stamped(device: torch.device, dependent: bool, graph: bool) -> Callable[[], Result]:
    stamps = torch.zeros(LAUNCHES * STAMP_WORDS, dtype=torch.int64, device=device)
    sink = torch.full((LAUNCHES,), -1, dtype=torch.int32, device=device)
    kernel = "stamp_dependent" if dependent else "stamp"

    def all_of_them() -> None:
        for index in range(LAUNCHES):
            driver().launch(IMAGE, kernel, [stamps, sink, index, BUSY], device, grid=1, block=32, dependent=dependent)

    replay = all_of_them
    if graph:
        all_of_them()
        torch.cuda.synchronize(device)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            all_of_them()
        replay = captured.replay

    def call() -> Result:
        sink.fill_(-1)
        replay()
        return Result(stamps=stamps, sink=sink)

    return call


def _row(
    name: str,
    question: str,
    unit: str,
    make: Callable[[torch.device], Callable[[], Result]],
    read: Callable[[Result], float],
) -> Benchmark:
    def prepare(env: Environment) -> Subject:
        require_gpu(IMAGE, env.device)

        def gate(result: Result) -> Comparison:
            done = torch.zeros(1) if result.sink is None else result.sink.double()
            return compare(done, torch.arange(len(done)).double(), 0.0)

        return Subject(inputs=None, ours={"cuda": make(env.device)}, gate=gate, read=read)

    return Benchmark(
        name=f"launch/{name}",
        suite="micro",
        what=question,
        shapes={"launches": LAUNCHES},
        inputs="none",
        prepare=prepare,
        unit=unit,
        rank=45,
    )


def benchmarks() -> list[Benchmark]:
    """Launches of nothing, and of kernels that write down when they ran."""
    rows = [
        _row(
            "host",
            "How long is the host busy with one launch, through Python?",
            "us",
            partial(_empties, cluster=1, graph=False),
            Result.host_us,
        ),
        _row(
            "stream",
            "How many microseconds apart do launches on a stream arrive?",
            "us",
            partial(_empties, cluster=1, graph=False),
            Result.device_us,
        ),
    ]
    for cluster in (1, 2, 8):
        rows.append(
            _row(
                f"graph/cluster{cluster}",
                f"How far apart do the kernels of a graph run, clusters of {cluster}?",
                "us",
                partial(_empties, cluster=cluster, graph=True),
                Result.device_us,
            )
        )
    for dependent in (False, True):
        for graph in (False, True):
            how = "programmatic dependent launch" if dependent else "stream order"
            place = "in a graph" if graph else "on a stream"
            rows.append(
                _row(
                    f"gap/{'dependent' if dependent else 'plain'}/{'graph' if graph else 'stream'}",
                    f"How long is it from a kernel's end to the next one's go, {how}, {place}?",
                    "ns",
                    partial(_stamped, dependent=dependent, graph=graph),
                    Result.gap_ns,
                )
            )
    return rows
