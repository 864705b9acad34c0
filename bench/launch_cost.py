"""What one launch costs on the host, through Python: `python -m bench.launch_cost`.

With a GPU the launches go to the CUDA driver; without, to a libcuda that does nothing (tests/kernels/fake_cuda.cpp),
which leaves the driver's own time out. The first line says which. Prints microseconds: the best and the median of many
short repeats. The goal: at most 10 microseconds for the launch, which comes on top of torch's own dispatch. The last
rows are what torch takes for an op that does nothing, and the whole call of an op: argument checks, the choice of a
backend, torch's dispatch, the output, the launch.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import tkpy
from tkpy import build_info, machine

ROOT = Path(__file__).resolve().parent.parent
GOAL = 10.0
LAUNCHES, REPEATS = 20, 200  # short repeats: on a busy machine some of them have a core to themselves


def fake_driver(folder: str) -> Any:
    """A driver machine on a libcuda that takes every call and does nothing."""
    os.environ["FAKE_QUIET"] = "1"
    library = f"{folder}/libcuda.so.1"
    source = ROOT / "tests/kernels/fake_cuda.cpp"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, str(source), "-o", library], check=True)
    return machine.compiled().Machine.driver(str(build_info.KERNELS), library=library)


@torch.library.custom_op("tkpy_bench::nothing", mutates_args=())
def nothing(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """An op of linear's shape that launches nothing: torch's own dispatch, autograd key and output included."""
    return x.new_empty(x.shape[0], weight.shape[0])


@nothing.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def microseconds(call: Callable[[], Any], device: str) -> list[float]:
    def several() -> None:
        for _ in range(LAUNCHES):
            call()

    call()
    times = []
    for _ in range(REPEATS):
        times.append(timeit.timeit(several, number=1) / LAUNCHES * 1e6)
        if device == "cuda":
            torch.cuda.synchronize()  # between repeats: the queue must not fill up
    return sorted(times)


def programs(device: str) -> dict[str, Callable[[], Any]]:
    """Parts of a launch, each with what lies below it."""
    a, b, out = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in ((64, 64), (64, 64), (64, 64)))
    odd = torch.zeros(64, 65, dtype=torch.bfloat16, device=device)[:, 1:]  # a pitch that TMA cannot take
    extension, backend = machine.compiled(), "cuda" if device == "cuda" else "emulator"
    stream, where = machine._stream_of(a), machine._machine_of(a)
    views = [machine.view(t) for t in (a, b, out)]
    unmapped = [machine.view(odd), *views[1:]]
    return {
        "views of three tensors": lambda: [machine.view(t) for t in (a, b, out)],
        "_C.launch, no tensor maps": lambda: extension.launch("gemm", where, stream, *unmapped, None, None, "none"),
        "_C.launch, two tensor maps": lambda: extension.launch("gemm", where, stream, *views, None, None, "none"),
        "machine.launch: views, stream, _C.launch": lambda: machine.launch(
            "gemm", a, b, out, None, None, "none", op="linear"
        ),
        "torch: an op that does nothing": lambda: torch.ops.tkpy_bench.nothing(a, b, None),
        "tkpy.linear": lambda: tkpy.linear(a, b, backend=backend),
    }


def report(device: str) -> None:
    for name, call in programs(device).items():
        times = microseconds(call, device)
        goal = f"   goal {GOAL:.0f}" if name.startswith("machine.launch") else ""
        print(f"{name:42} {times[0]:6.2f} us   (median {times[len(times) // 2]:.2f}){goal}")


def main() -> None:
    if torch.cuda.is_available():
        print(f"CUDA driver, {torch.cuda.get_device_name()}")
        with torch.no_grad():
            report("cuda")
        return
    print("no GPU: a libcuda that does nothing; the driver's own time is not in these numbers")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        driver, view = fake_driver(folder), machine.view
        on_gpu = mock.patch.object(machine, "view", lambda t: (*view(t)[:4], 0))
        with on_gpu, mock.patch.object(machine, "_machine_of", return_value=driver):
            report("cpu")


if __name__ == "__main__":
    main()
