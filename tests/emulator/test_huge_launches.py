"""What a launch takes of the host: memory for the blocks that run, not for the grid, and an exception when it runs out;
time until somebody has had enough."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

import tkpy.emulator

HEADER = ".version 8.0\n.target sm_90a\n.address_size 64\n"
RETURN = HEADER + ".visible .entry k() { ret; }"
TRAP = HEADER + ".visible .entry k() { trap; ret; }"
ENDLESS = HEADER + ".visible .entry k() { again: bra again; }"
# Clusters that meet at an address run together, in one host thread.
TOGETHER = (
    HEADER
    + """.visible .global .u32 meeting;
.visible .entry k() { .reg .b32 %r<2>; atom.global.add.u32 %r1, [meeting], 1; trap; ret; }"""
)
# 512 KiB of local memory a thread: 512 MiB a block.
GREEDY = (
    HEADER
    + """.visible .entry k() { .local .b8 much[500000]; .reg .b64 %d<2>; .reg .b32 %r<2>;
mov.u64 %d1, much; st.local.u32 [%d1], 1; ret; }"""
)
MEET_FOR_EVER = TOGETHER.replace("trap; ret;", "again: bra again;")

HUGE = {"grid": 2**31 - 1, "block": 32, "max_instructions": 1000, "checks": "all"}
TOO_MUCH = {"grid": 8, "block": 1024, "checks": "none"}
CASES = {
    "trap": (TRAP, HUGE | {"threads": 1}, "KernelError trap"),
    "trap, two threads": (TRAP, HUGE | {"threads": 2}, "KernelError trap"),
    "budget": (ENDLESS, HUGE | {"threads": 1}, "KernelError budget"),
    "budget, two threads": (ENDLESS, HUGE | {"threads": 2}, "KernelError budget"),
    "clusters that run together": (TOGETHER, HUGE | {"threads": 2}, "KernelError trap"),
    "memory": (GREEDY, TOO_MUCH | {"threads": 1}, "MemoryError"),
    "memory, two threads": (GREEDY, TOO_MUCH | {"threads": 2}, "MemoryError"),
    "memory, four threads": (GREEDY, TOO_MUCH | {"threads": 4}, "MemoryError"),
    "more threads than there is room for": (RETURN, {"grid": 5000, "threads": 100_000}, "5000 blocks"),
}

# Each case in a process of its own, which may take 384 MiB of address space beyond what it has with all loaded: that is
# room for a few threads (an arena of 64 MiB and a stack of 8 each) and some blocks, but not for a record of every block.
RUNNER = """
import json, os, resource, sys
import tkpy.emulator

def run(text, options):
    module = tkpy.emulator.load(text)
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (384 << 20), resource.RLIM_INFINITY))
    try:
        return f"{module.launch('k', **options).counters.total.issues} blocks"
    except tkpy.emulator.KernelError as error:
        return f"KernelError {error.findings[-1].code}"
    except MemoryError:
        return "MemoryError"

for name, (text, options, _) in json.load(sys.stdin).items():
    child = os.fork()
    if child == 0:
        os.write(1, (json.dumps([name, run(text, options)]) + chr(10)).encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input=json.dumps(CASES), capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_a_launch_takes_memory_for_the_blocks_that_run_and_raises_when_there_is_none(
    said: dict[str, str], name: str
) -> None:
    assert said.get(name, "the process died") == CASES[name][2]


@pytest.mark.parametrize("text", [ENDLESS, MEET_FOR_EVER], ids=["apart", "together"])
@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_ends_a_launch(text: str, threads: int) -> None:
    module = tkpy.emulator.load(text)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            module.launch("k", grid=8, block=32, threads=threads, max_instructions=2**32)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert tkpy.emulator.load(RETURN).launch("k", block=32).counters.total.issues == 1  # and nothing is left of it
