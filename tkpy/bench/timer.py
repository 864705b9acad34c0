"""How long a call takes, and how that is found out.

`CudaTimer.cold`: each call alone, from the caches' cold state, all calls in turn, so that a drift of the clock meets
all of them. Before each call a buffer of three times the L2 is read: it leaves clean lines of other data there, and
keeps the GPU busy for longer than the host needs to submit the call, so that what lies between the two events is the
GPU's time and not the launch's. Events resolve about half a microsecond.

`CudaTimer.warm`: many calls in one CUDA graph, replayed: no launch overhead, caches warm; the only fair time of calls
of some microseconds.

`WallTimer`: the host's clock, for work on the CPU.

Results are samples in seconds; `Samples` has their median and quartiles. The CUDA interface comes in as a parameter, so
that everything but the device is tested without one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], Any]

MIN_ROUNDS, MAX_ROUNDS = 10, 200
WARM_UP = 3  # calls: lazy initialisation, autotuning, the allocator
WARM_SECONDS = 5e-3  # of work in one graph, at most WARM_CALLS calls
WARM_CALLS = 100
SHORT = 100e-6  # calls shorter than this get a warm time too


@dataclass(frozen=True)
class Samples:
    """Measurements of one thing, in the order in which they were made."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """The middle half's width against the median."""
        low, high = self.quartiles
        return (high - low) / abs(self.median) if self.median else 0.0

    def map(self, function: Callable[[float], float]) -> Samples:
        """The same samples in another unit."""
        return Samples(tuple(function(v) for v in self.values))


class Timer(Protocol):
    """What the runner asks of a clock; `method` says in a row how its numbers came about."""

    method: str

    def cold(self, calls: Mapping[str, Call], seconds: float) -> dict[str, Samples]:
        """Seconds of each call, all of them in turn, for about `seconds` of time in all."""

    def warm(self, call: Call) -> Samples | None:
        """Seconds of one of many calls in a row with nothing between them; None where that cannot be measured."""

    def own(self, calls: Mapping[str, Call], read: Callable[[Any], float], rounds: int) -> dict[str, Samples]:
        """Samples of calls that time themselves."""


def rounds_for(seconds: float, one_round: float) -> int:
    """How many rounds of `one_round` seconds fit."""
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / max(one_round, 1e-9))))


def turned(names: list[str], by: int) -> list[str]:
    """The order of a round: each round begins with the next call, so that none always follows the same one."""
    by %= max(len(names), 1)
    return names[by:] + names[:by]


def _own(calls: Mapping[str, Call], read: Callable[[Any], float], rounds: int, wait: Call) -> dict[str, Samples]:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for name in calls:
        calls[name]()
    wait()
    for round_ in range(rounds):
        for name in turned(list(calls), round_):
            output = calls[name]()
            wait()
            samples[name].append(read(output))
    return {name: Samples(tuple(values)) for name, values in samples.items()}


class CudaTimer:
    """CUDA events and graphs. `cuda` is torch.cuda or what stands for it; `flush()` reads the buffer once."""

    method = "CUDA events, L2 cold, calls in turn"

    def __init__(self, cuda: Any, flush: Call):
        self._cuda, self._flush = cuda, flush

    @classmethod
    def here(cls, device: torch.device) -> CudaTimer:
        """On torch's current device, with a buffer of three times its L2."""
        size = torch.cuda.get_device_properties(device).L2_cache_size
        buffer = torch.zeros(3 * max(size, 1 << 24) // 4, dtype=torch.int32, device=device)
        return cls(torch.cuda, lambda: torch.amax(buffer))

    def _elapsed(self, call: Call) -> float:
        """Seconds between two events around `call`, waited for."""
        start, end = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        self._cuda.synchronize()
        return 1e-3 * start.elapsed_time(end)

    def _flushes(self, call: Call, flush_seconds: float) -> int:
        """How many readings of the buffer keep the GPU busy while the host submits `call`, twice over."""
        self._cuda.synchronize()
        submit = time.perf_counter()
        call()
        submit = time.perf_counter() - submit
        self._cuda.synchronize()
        return max(1, min(50, round(2 * submit / max(flush_seconds, 1e-6))))

    def cold(self, calls: Mapping[str, Call], seconds: float) -> dict[str, Samples]:
        for call in [*calls.values(), self._flush]:
            for _ in range(WARM_UP):
                call()
        self._cuda.synchronize()
        flush_seconds = self._elapsed(self._flush)
        flushes = {name: self._flushes(call, flush_seconds) for name, call in calls.items()}
        one_round = sum(self._elapsed(call) + flushes[name] * flush_seconds for name, call in calls.items())
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(rounds_for(seconds, one_round)):
            for name in turned(list(calls), round_):
                for _ in range(flushes[name]):
                    self._flush()
                samples[name].append(self._elapsed(calls[name]))
        return {name: Samples(tuple(values)) for name, values in samples.items()}

    def warm(self, call: Call) -> Samples | None:
        call()
        count = max(1, min(WARM_CALLS, int(WARM_SECONDS / max(self._elapsed(call), 1e-6))))
        side = self._cuda.Stream()
        side.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side):  # a capture wants its first call outside, on a side stream
            call()
        self._cuda.current_stream().wait_stream(side)
        graph = self._cuda.CUDAGraph()
        try:
            with self._cuda.graph(graph):
                for _ in range(count):
                    call()
        except RuntimeError:  # it synchronises or allocates: no graph can hold it
            self._cuda.synchronize()
            return None
        graph.replay()
        return Samples(tuple(self._elapsed(graph.replay) / count for _ in range(MIN_ROUNDS)))

    def own(self, calls: Mapping[str, Call], read: Callable[[Any], float], rounds: int) -> dict[str, Samples]:
        return _own(calls, read, rounds, self._cuda.synchronize)


class WallTimer:
    """The host's clock, for calls on the CPU; caches are as the last call left them."""

    method = "host clock, caches as they are, calls in turn"

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock

    def _elapsed(self, call: Call) -> float:
        start = self._clock()
        call()
        return self._clock() - start

    def cold(self, calls: Mapping[str, Call], seconds: float) -> dict[str, Samples]:
        one_round = sum(self._elapsed(call) for call in calls.values())
        count = max(3, min(MAX_ROUNDS, int(seconds / max(one_round, 1e-9))))
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(count):
            for name in turned(list(calls), round_):
                samples[name].append(self._elapsed(calls[name]))
        return {name: Samples(tuple(values)) for name, values in samples.items()}

    def warm(self, call: Call) -> Samples | None:
        return None

    def own(self, calls: Mapping[str, Call], read: Callable[[Any], float], rounds: int) -> dict[str, Samples]:
        return _own(calls, read, rounds, lambda: None)
