"""What keeps one bad kernel from taking the rest of a run with it.

A kernel that faults leaves a device that answers nothing more in this process; one that hangs never comes back. Either
ends the process with status `LOST`, after a row that says so; `--resume` goes on with the benchmarks that have no row.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from tkpy.bench.rows import Sink
from tkpy.bench.runner import lost_row
from tkpy.bench.spec import Benchmark, Environment

LOST = 3


class DeviceLost(Exception):
    """The device answers nothing more in this process."""


class Guard:
    """Around each benchmark: a watch while it runs, and a question to the device after it."""

    def __init__(self, sink: Sink, env: Environment, patience: float, leave: Callable[[int], object] = os._exit):
        self._sink, self._env, self._patience, self._leave = sink, env, patience, leave

    @contextlib.contextmanager
    def __call__(self, benchmark: Benchmark) -> Iterator[None]:
        watch = threading.Timer(self._patience, self._hung, [benchmark])
        watch.daemon = True
        watch.start()
        try:
            yield
            self._env.alive()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            self._sink.write(lost_row(benchmark, self._env, f"it lost the device: {reason}"))
            raise DeviceLost(f"the device is lost after {benchmark.name}: {reason}") from error
        finally:
            watch.cancel()

    def _hung(self, benchmark: Benchmark) -> None:
        reason = f"no end within {self._patience:.0f} s"
        self._sink.write(lost_row(benchmark, self._env, reason))
        sys.stderr.write(f"{benchmark.name}: {reason}; --resume goes on with the others\n")
        self._leave(LOST)
