"""Microbenchmarks in the emulator: whether a kernel does what its row says, what it counts, and what the model of time
makes of it.

The small plan runs under all checks: no finding, the right result, and between the two readings of the clock as many of
the instructions as the row divides by. The brief plan, one SM's (or one cluster's) share of the full one, is replayed
by `tkpy.emulator.timing`: the number comes from the model's clocks as a GPU's comes from a GPU's. It is a prediction.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import asdict
from typing import Any

import torch

from tkpy import build_info, emulator
from tkpy.bench.micro import Argument, Map, Micro, Place, Plan, Records, Struct, Wide
from tkpy.bench.spec import LOWER_IS_BETTER, Count
from tkpy.emulator import Counters, Run, timing
from tkpy.errors import InternalError
from tkpy.numerics import Comparison

CPU = torch.device("cpu")
#: Units of a whole machine's rate; all others are of one SM, or of one operation.
OF_THE_MACHINE = ("TFLOP/s", "GB/s", "B/clk", "Gop/s")


@functools.cache
def _module(name: str) -> emulator.Module:
    return emulator.load(build_info.KERNELS / f"{name}.ptx")


def _argument(arg: Argument) -> Any:
    if isinstance(arg, Map):
        return emulator.TensorMap(arg.tensor, arg.box, swizzle=arg.swizzle)
    if isinstance(arg, Struct):
        return struct.pack(f"<{len(arg.words)}I", *arg.words)
    return arg.value if isinstance(arg, Wide) else arg


def _launch(micro: Micro, plan: Plan, **how: Any) -> tuple[Run, torch.Tensor]:
    """The run, and the sink."""
    records, sink = plan.outputs(CPU)
    args = [records, sink, *plan.args]
    run = _module(micro.image).launch(
        micro.kernel, grid=plan.grid, block=plan.block, cluster=plan.cluster, shared=plan.shared, threads=1,
        args=[_argument(arg) for arg in args],
        buffers=[*plan.touches, *(arg.tensor for arg in args if isinstance(arg, Map))], **how,
    )  # fmt: skip
    return run, sink


def run_small(micro: Micro, seed: int = 0) -> tuple[Run, Comparison, Plan]:
    """The small plan under all checks: the run with its counters, and whether its result is right."""
    plan = micro.plan(Place(CPU, 2, small=True))
    run, sink = _launch(micro, plan, seed=seed)
    return run, plan.check(sink), plan


def timed(run: Run) -> Counters:
    """The counters of a run between its first reading of the clock and its last."""
    reads = [row.ptx_line for row in run.counters.rows if "%clock64" in row.text]
    return Counters(row for row in run.counters.rows if min(reads) < row.ptx_line < max(reads))


def faults_of(run: Run, comparison: Comparison, plan: Plan) -> list[str]:
    """What is wrong with a small run, in words."""
    wrong = [str(finding) for finding in run.findings[:1]]
    if not comparison:
        wrong.append(str(comparison))
    inside = timed(run)
    for kind, wanted in (("issues", plan.counters), ("shared_wavefronts", plan.wavefronts)):
        for ptx, count in wanted.items():
            if (got := getattr(inside.select(ptx), kind)) != count:
                wrong.append(f"{ptx}: {kind} {got}, must be {count}")
    return wrong


def predict(micro: Micro, device: str = "h100-sxm") -> tuple[float, timing.Prediction]:
    """The row's number on a device of bench/published/devices.json, by the model of time; never a measurement."""
    full = micro.plan(Place(torch.device("meta"), timing.Rates.of(device).multiprocessors))
    short, _ = _replayed(micro, full, device, 1)
    long, prediction = _replayed(micro, full, device, 2)
    # What the second half took: starting and ending do not count, as in the full plan they hardly do.
    value = 2 * long - short if micro.unit in LOWER_IS_BETTER else 1 / (2 / long - 1 / short)
    return value, prediction


def _replayed(micro: Micro, full: Plan, device: str, length: int) -> tuple[float, timing.Prediction]:
    plan = micro.plan(Place(CPU, full.cluster, brief=length))
    run, _ = _launch(micro, plan, checks="none", trace=full.cluster, warm=not plan.cold)
    sms = timing.Rates.of(device).multiprocessors
    prediction = timing.predict(run.trace, device, active=min(sms, full.grid))
    to_ns = 1e9 / prediction.rates.clock
    rows = [
        [reads[0], reads[-1], reads[0] * to_ns, reads[-1] * to_ns, 0]
        for (_, warp), reads in sorted(prediction.clocks.items())
        if warp == 0
    ]
    value = plan.value(Records(torch.tensor(rows, dtype=torch.float64)))
    return value * (full.grid / plan.grid if micro.unit in OF_THE_MACHINE else 1), prediction


def count(micro: Micro) -> Count:
    """For `--counters`: what lies between the clocks of the small plan, and the prediction where there is one."""
    run, comparison, plan = run_small(micro)
    if wrong := faults_of(run, comparison, plan):
        raise InternalError("; ".join(wrong))
    predicted = None
    if micro.modelled:
        value, prediction = predict(micro)
        predicted = {
            "value": value, "unit": micro.unit, "device": prediction.rates.device, "binding": prediction.binding,
            "label": "predicted by tkpy.emulator.timing, a model: not a measurement",
        }  # fmt: skip
    shapes = {**micro.shapes, "grid": plan.grid, "block": plan.block}
    return Count(shapes, asdict(timed(run).total), comparison, 0, 0, predicted)
