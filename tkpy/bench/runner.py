"""Runs benchmarks: makes the inputs, asks the gate about every call, times those that passed in turn, yields rows."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tkpy.bench.roofs import Roofs
from tkpy.bench.rows import SCHEMA, Row
from tkpy.bench.spec import Benchmark, Environment, Subject
from tkpy.bench.timer import SHORT, Samples
from tkpy.errors import InternalError, Unsupported
from tkpy.numerics import Comparison

#: What a candidate may raise without ending the run: our refusals and errors, torch's and the driver's, out of memory.
CAUGHT = (
    Unsupported,
    InternalError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    TypeError,
    ImportError,
    MemoryError,
)

ROOM = 8 << 30  # bytes that torch may keep from one row to the next: giving them back takes longer than a small row
OWN_ROUNDS = 20  # of kernels that time themselves


def run(
    benchmarks: Iterable[Benchmark],
    env: Environment,
    *,
    seconds: float = 1.0,
    peers: bool = True,
    alone: bool = True,
    roofs: Roofs | None = None,
    guard: Callable[[Benchmark], contextlib.AbstractContextManager[None]] = lambda benchmark: contextlib.nullcontext(),
) -> Iterator[Row]:
    """The rows of each benchmark, ours first. `seconds`: timed per benchmark, all its candidates together; `alone`:
    peers are timed too where nothing of ours can be; `guard` is entered for each."""
    for benchmark in benchmarks:
        with guard(benchmark):
            yield from _rows(benchmark, env, seconds, peers, alone, roofs)
        if env.device.type == "cuda" and torch.cuda.memory_reserved(env.device) > ROOM:
            gc.collect()
            torch.cuda.empty_cache()


def lost_row(benchmark: Benchmark, env: Environment, reason: str) -> Row:
    """Of a benchmark that never came back."""
    return _without(_base(benchmark, env, "tkpy", True), "failed", reason)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, Unsupported):
        return "; ".join(str(reason) for reasons in error.refusals.values() for reason in reasons)
    return next(line.strip() for line in text.splitlines() if line.strip())


def _base(benchmark: Benchmark, env: Environment, candidate: str, ours: bool) -> Row:
    row: Row = {
        "schema": SCHEMA,
        "status": "ok",
        "suite": benchmark.suite,
        "benchmark": benchmark.name,
        "group": benchmark.group,
        "candidate": candidate,
        "ours": ours,
        "what": benchmark.what,
        "shapes": dict(benchmark.shapes),
        "dtype": benchmark.dtype,
        "inputs": benchmark.inputs,
        "flops": benchmark.flops,
        "bytes": benchmark.nbytes,
        "published": list(benchmark.published),
        "timing": env.timer.method,
        "machine": dict(env.facts),
    }
    if env.device.type != "cuda":
        row["label"] = f"CPU row: {candidate} on this processor, not a speed of a GPU kernel"
    return row


def _without(row: Row, status: str, reason: str) -> Row:
    return {**row, "status": status, "reason": reason}


def count(benchmarks: Iterable[Benchmark], env: Environment) -> Iterator[Row]:
    """What our kernels do, counted in the emulator: rows without a time. Those without a kernel are refused."""
    for benchmark in benchmarks:
        row = _base(benchmark, env, "emulator", True) | {"timing": "none: counted in the emulator"}
        row.pop("label", None)
        try:
            if benchmark.count is None:
                raise NotImplementedError("it has no kernel that the emulator can run")
            found = benchmark.count()
        except CAUGHT as error:
            refused = isinstance(error, Unsupported | NotImplementedError)
            yield _without(row, "refused" if refused else "failed", _first_line(error))
            continue
        row |= {"shapes": dict(found.shapes), "flops": found.flops, "bytes": found.nbytes}
        if not found.gate.ok:
            yield _without(row, "wrong", f"the gate: {found.gate}")
            continue
        gate = {"error": found.gate.relative, "tolerance": found.gate.tolerance}
        row |= {"status": "counted", "counters": dict(found.counters), "gate": gate}
        if found.kernels:
            row["kernels"] = [dict(kernel) for kernel in found.kernels]
        if found.promise is not None:
            row["promise"] = asdict(found.promise)
            row["broken"] = found.promise.broken(found.kernels, found.flops, found.nbytes)
        yield row | ({"predicted": dict(found.predicted)} if found.predicted else {})


@dataclass
class _Candidate:
    call: Callable[[], Any]
    row: Row
    comparison: Comparison | None = None


def _rows(
    benchmark: Benchmark, env: Environment, seconds: float, peers: bool, alone: bool, roofs: Roofs | None
) -> Iterator[Row]:
    try:
        subject = benchmark.prepare(env)
    except CAUGHT as error:
        status = "refused" if isinstance(error, Unsupported) else "failed"
        yield _without(_base(benchmark, env, "tkpy", True), status, _first_line(error))
        return
    benchmark = replace(
        benchmark,
        flops=benchmark.flops if subject.flops is None else subject.flops,
        nbytes=benchmark.nbytes if subject.nbytes is None else subject.nbytes,
    )
    for name, reason in subject.refused.items():
        yield _without(_base(benchmark, env, name, True), "refused", reason)
    candidates = {
        name: _Candidate(call, {**_base(benchmark, env, name, True), **subject.notes})
        for name, call in subject.ours.items()
    }
    for peer in benchmark.peers if peers and (alone or candidates) else ():
        row = _base(benchmark, env, peer.name, False)
        if (missing := peer.missing()) is not None:
            yield _without(row, "refused", missing)
            continue
        try:
            candidates[peer.name] = _Candidate(peer.build(subject.inputs), row)
        except CAUGHT as error:
            yield _without(row, "refused", _first_line(error))
    for name, candidate in list(candidates.items()):
        status, reason = _judge(candidate, subject, env)
        if status != "ok":
            yield _without(candidate.row, status, reason)
            del candidates[name]
    if alone or any(candidate.row["ours"] for candidate in candidates.values()):
        yield from _timed(benchmark, env, subject, candidates, seconds, roofs)


def _judge(candidate: _Candidate, subject: Subject, env: Environment) -> tuple[str, str]:
    """Runs a candidate once and asks the gate: the status, and the reason unless it is "ok"."""
    try:
        with torch.no_grad():
            output = candidate.call()
        if env.device.type == "cuda":
            torch.cuda.synchronize(env.device)
        candidate.comparison = subject.gate(output)
    except CAUGHT as error:
        refused = isinstance(error, Unsupported | NotImplementedError) or not candidate.row["ours"]
        return "refused" if refused else "failed", _first_line(error)
    return ("ok", "") if candidate.comparison.ok else ("wrong", f"the gate: {candidate.comparison}")


def _timed(
    benchmark: Benchmark,
    env: Environment,
    subject: Subject,
    candidates: dict[str, _Candidate],
    seconds: float,
    roofs: Roofs | None,
) -> Iterator[Row]:
    if not candidates:
        return
    calls = {name: candidate.call for name, candidate in candidates.items()}
    warm: dict[str, Samples | None] = {}
    try:
        with torch.no_grad():
            if subject.read is not None:
                samples = env.timer.own(calls, subject.read, OWN_ROUNDS)
            else:
                samples = env.timer.cold(calls, seconds)
            condition = dict(env.condition())
            if subject.read is None and subject.graphs:
                warm = {name: env.timer.warm(call) for name, call in calls.items() if samples[name].median < SHORT}
    except CAUGHT as error:
        for candidate in candidates.values():
            yield _without(candidate.row, "failed", f"while it was timed: {_first_line(error)}")
        return
    for name, candidate in candidates.items():
        row = {**candidate.row, "condition": condition}
        if candidate.comparison is not None:
            row["gate"] = {"error": candidate.comparison.relative, "tolerance": candidate.comparison.tolerance}
        if subject.read is not None:
            yield {**row, **_numbers(samples[name], benchmark.unit)}
            continue
        row["seconds"] = samples[name].median
        if (many := warm.get(name)) is not None:
            row["warm"] = {"median": many.median, "q1": many.quartiles[0], "q3": many.quartiles[1]}
        bound = roofs.bound(benchmark.flops, benchmark.nbytes, benchmark.dtype) if roofs is not None else None
        if bound is not None:
            row["roof"] = {"name": bound.name, "percent": 100 * bound.seconds / samples[name].median}
        yield {**row, **_numbers(samples[name].map(benchmark.value), benchmark.unit)}


def _numbers(samples: Samples, unit: str) -> Row:
    low, high = samples.quartiles
    return {
        "unit": unit,
        "value": samples.median,
        "q1": low,
        "q3": high,
        "spread": samples.spread,
        "samples": list(samples.values),
    }
