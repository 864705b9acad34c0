"""What keeps one bad kernel from taking the other `gpu` tests with it, as tkpy/bench/guard.py does for benchmarks.

A kernel that faults leaves a device that answers nothing more in this process: every later test would fail. One that
hangs never comes back. Either ends the process with status `LOST`. bench/gpu_tests.py then begins a new one for the
tests that are left: GPU_TESTS_BEGUN names a file of those begun so far, which are not begun again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LOST = 3
PATIENCE = 60.0  # seconds that one test may take, without its fixtures: some of them compile


class GpuGuard:
    """A pytest plugin. `alive` raises RuntimeError if the device answers no more."""

    def __init__(self, alive: Callable[[], object], patience: float = PATIENCE):
        self._alive, self._patience = alive, patience
        self._begun = Path(os.environ["GPU_TESTS_BEGUN"]) if "GPU_TESTS_BEGUN" in os.environ else None

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self._begun is None or not self._begun.exists():
            return
        begun = set(self._begun.read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in begun])
        items[:] = [item for item in items if item.nodeid not in begun]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if "gpu" not in item.keywords:
            return (yield)
        if self._begun is not None:
            with open(self._begun, "a") as begun:
                begun.write(f"{item.nodeid}\n")
        watch = threading.Timer(self._patience, self._hung, [item])
        watch.daemon = True
        watch.start()
        faulthandler.dump_traceback_later(self._patience + 10, exit=True)  # where the interpreter itself is held
        try:
            return (yield)
        finally:
            watch.cancel()
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        try:
            return (yield)
        finally:
            if "gpu" in item.keywords:
                try:
                    self._alive()
                except RuntimeError as error:
                    reason = str(error).partition("\n")[0]
                    pytest.exit(f"{item.nodeid}: the device is lost: {reason}", returncode=LOST)

    def _hung(self, item: pytest.Item) -> None:
        capture = item.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            print(f"\n{item.nodeid}: no end within {self._patience:.0f} s", flush=True)
            faulthandler.dump_traceback(sys.__stdout__)
        os._exit(LOST)
