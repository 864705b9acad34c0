"""The benchmark harness, with a simulated device: what is timed, when, and what is refused."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch

import tkpy
from tkpy import registry
from tkpy.bench import report, rows, runner
from tkpy.bench.op_rows import OpRows, by_op, from_cases
from tkpy.bench.roofs import Roofs
from tkpy.bench.spec import Benchmark, Environment, Peer, Subject, discover, select
from tkpy.bench.timer import MAX_ROUNDS, MIN_ROUNDS, CudaTimer, Samples, WallTimer
from tkpy.numerics import compare

pytestmark = pytest.mark.fast


class FakeCuda:
    """torch.cuda as far as CudaTimer uses it: work is submitted to one queue, whose clock advances by what it costs.

    `warm` is false after a flush, so that a test sees whether a call met a cold cache.
    """

    def __init__(self):
        self.now = 0.0
        self.log: list[str] = []
        self.warm = False
        self.capturing: list[float] | None = None

    def work(self, name: str, cold: float, warm: float | None = None) -> None:
        seconds = cold if not self.warm or warm is None else warm
        self.log.append(name)
        self.warm = True
        if self.capturing is not None:
            self.capturing.append(cold if warm is None else warm)
        else:
            self.now += seconds

    def flush(self) -> None:
        self.work("flush", 50e-6)
        self.warm = False

    def synchronize(self, device=None):
        assert self.capturing is None

    def Event(self, enable_timing):
        assert enable_timing
        fake = self

        class Event:
            def record(self):
                self.at = fake.now

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        return Event()

    def Stream(self):
        class Stream:
            def wait_stream(self, other):
                pass

        return Stream()

    current_stream = Stream

    @contextlib.contextmanager
    def stream(self, stream):
        yield

    def CUDAGraph(self):
        fake = self

        class Graph:
            def replay(self):
                fake.now += sum(self.work)

        return Graph()

    @contextlib.contextmanager
    def graph(self, graph):
        self.capturing = graph.work = []
        yield
        self.capturing = None


def fake_environment(cuda: FakeCuda, **more) -> Environment:
    return Environment(torch.device("cpu"), CudaTimer(cuda, cuda.flush), ours=("emulator",), **more)


def toy(name="toy/a", *, seconds=20e-6, peer_seconds=40e-6, cuda: FakeCuda, output=1.0, unit="us", **more) -> Benchmark:
    """A benchmark of simulated costs, whose gate wants a one."""

    def call(label, cost, value):
        def run():
            cuda.work(label, cost, cost / 2)
            return torch.tensor([value])

        return run

    return Benchmark(
        name=name,
        suite="micro",
        what="a toy",
        shapes={"n": 1},
        inputs="none",
        prepare=lambda env: Subject(
            None, {"cuda": call("ours", seconds, output)}, lambda out: compare(out, torch.ones(1), 1e-6)
        ),
        unit=unit,
        peers=(
            Peer("peer", lambda inputs: call("peer", peer_seconds, 1.0)),
            Peer("absent", print, needs="no_such_pkg"),
        ),
        **more,
    )


def test_calls_are_timed_cold_in_turn_and_warm():
    cuda = FakeCuda()
    found = list(runner.run([toy(cuda=cuda)], fake_environment(cuda), seconds=0.01))
    ours, peer = rows.good(found)
    assert (ours["candidate"], peer["candidate"]) == ("cuda", "peer")
    assert ours["value"] == pytest.approx(20.0)  # the cold cost: the flush came before every sample
    assert peer["value"] == pytest.approx(40.0)
    assert ours["warm"]["median"] == pytest.approx(10e-6)
    assert MIN_ROUNDS <= len(ours["samples"]) <= MAX_ROUNDS
    calls = [name for name in cuda.log if name != "flush"]
    turns = "".join(name[0] for name in calls)
    assert "oppooppo" in turns  # each round begins with the next candidate
    assert ours["gate"]["error"] == 0.0
    assert "L2 cold" in ours["timing"]


def test_an_absent_peer_is_named_and_not_timed():
    cuda = FakeCuda()
    absent = next(r for r in runner.run([toy(cuda=cuda)], fake_environment(cuda)) if r["candidate"] == "absent")
    assert (absent["status"], absent["reason"]) == ("refused", "no_such_pkg is not installed")


@pytest.mark.parametrize("output", [0.0, math.nan, 1.0001])
def test_a_wrong_result_is_never_timed(output):
    cuda = FakeCuda()
    found = list(runner.run([toy(cuda=cuda, output=output)], fake_environment(cuda), seconds=0.001))
    (ours,) = [r for r in found if r["ours"]]
    assert ours["status"] == "wrong"
    assert not {"value", "seconds", "samples"} & set(ours)
    assert cuda.log.count("ours") == 1
    assert [r["candidate"] for r in rows.good(found)] == ["peer"]


def test_a_call_that_raises_does_not_end_the_run():
    cuda = FakeCuda()

    def broken(env):
        raise RuntimeError("CUDA error: out of memory\nand a long story")

    bad = Benchmark("toy/bad", "micro", "", {}, "", broken)
    found = list(runner.run([bad, toy(cuda=cuda)], fake_environment(cuda), seconds=0.001))
    assert (found[0]["status"], found[0]["reason"]) == ("failed", "CUDA error: out of memory")
    assert rows.good(found)


def test_a_kernel_that_times_itself():
    cuda = FakeCuda()
    cycles = iter(range(100, 200))
    benchmark = Benchmark(
        "toy/latency", "micro", "", {}, "", unit="clk",
        prepare=lambda env: Subject(
            None, {"cuda": lambda: torch.tensor(next(cycles))}, lambda out: compare(out >= 0, torch.ones(()), 0.0),
            read=float,
        ),
    )  # fmt: skip
    (row,) = runner.run([benchmark], fake_environment(cuda))
    assert row["unit"] == "clk"
    assert row["value"] == pytest.approx(111.5)  # 100 went to the gate, 101 to the warm-up
    assert "seconds" not in row


def test_a_graph_that_cannot_be_captured_leaves_no_warm_time():
    cuda = FakeCuda()

    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    cuda.graph = refuse
    assert CudaTimer(cuda, cuda.flush).warm(lambda: cuda.work("x", 1e-6)) is None


def test_rates_and_roofs():
    cuda = FakeCuda()
    roofs = Roofs("toy", {"bfloat16": 1e15}, 1e12, 132, 1.8e9)
    for flops, nbytes, name, percent in ((10**10, 1, "bfloat16 arithmetic", 50.0), (1, 10**7, "HBM", 50.0)):
        benchmark = toy(cuda=cuda, flops=flops, nbytes=nbytes, dtype="bfloat16", unit="TFLOP/s")
        ours = rows.good(runner.run([benchmark], fake_environment(cuda), seconds=0.001, roofs=roofs))[0]
        assert ours["value"] == pytest.approx(flops / 20e-6 / 1e12)
        assert ours["roof"]["name"] == name
        assert ours["roof"]["percent"] == pytest.approx(percent)
    assert roofs.bound(0, 0, "bfloat16") is None
    assert roofs.bound(5, 0, "int4") is None


def test_statistics():
    samples = Samples((4.0, 1.0, 3.0, 2.0, 100.0))
    assert samples.median == 3.0
    assert samples.quartiles == (2.0, 4.0)
    assert samples.spread == pytest.approx(2 / 3)
    assert Samples((7.0,)).quartiles == (7.0, 7.0)
    assert samples.map(lambda v: 2 * v).median == 6.0


def test_the_wall_timer_measures_what_it_is_told():
    ticks = iter(range(1000))
    found = WallTimer(lambda: float(next(ticks))).cold({"a": lambda: None, "b": lambda: None}, seconds=8.0)
    assert found["a"].values == (1.0,) * 4


def test_rows_survive_an_interruption(tmp_path):
    path = tmp_path / "rows.jsonl"
    cuda = FakeCuda()
    with rows.Sink(path) as sink:
        for row in runner.run([toy(cuda=cuda)], fake_environment(cuda), seconds=0.001):
            sink.write(row)
            assert json.loads(path.read_text().splitlines()[-1]) == row  # on disk before the next one
    whole = rows.read(path)
    assert len(whole) == 3
    with path.open("a") as file:
        file.write('{"schema": 1, "stat')  # cut off
    assert rows.read(path) == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is not JSON"),
        ("[1]", "line 2 is no benchmark row"),
        ('{"schema": 1}', "it has no status, suite, benchmark"),
        (
            '{"schema": 9, "status": "ok", "suite": "ops", "benchmark": "b", "candidate": "c", "ours": true}',
            "no row of schema 1",
        ),
        (
            '{"schema": 1, "status": "ok", "suite": "ops", "benchmark": "b", "candidate": "c", "ours": true}',
            "status ok, but no value",
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=message):
        rows.read(path)


def test_ops_never_time_the_eager_or_reference_form_as_ours():
    for benchmark in [*from_cases(registry.get("rms_norm")), *by_op()["linear"].benchmarks()]:
        assert benchmark.suite == "ops"
    env = Environment(torch.device("cpu"), WallTimer(), ours=("cuda", "triton"))
    found = list(runner.run(from_cases(registry.get("rms_norm"), ["small"]), env, seconds=0.001))
    assert {r["candidate"]: r["status"] for r in found} == {"cuda": "refused", "triton": "refused", "torch eager": "ok"}
    assert all(r["ours"] == (r["candidate"] != "torch eager") for r in found)
    assert "needs_gpu" in next(r["reason"] for r in found if r["candidate"] == "triton")
    assert all(r["label"].startswith("CPU row") for r in found)


def test_the_gate_of_an_op_is_its_reference(monkeypatch):
    op = registry.get("rotary")
    monkeypatch.setattr(op.module("eager"), "forward", lambda x, *rest: torch.zeros_like(x))
    env = Environment(torch.device("cpu"), WallTimer(), ours=())
    (row,) = runner.run(from_cases(op, ["small"]), env, seconds=0.001)
    assert row["status"] == "wrong"


def test_the_gemm_rows():
    benchmarks = [b for b in discover() if b.group == "linear"]
    for dtype in ("bfloat16", "float16"):
        shapes = [tuple(b.shapes[n] for n in "mnk") for b in benchmarks if b.dtype == dtype]
        assert len(set(shapes)) >= 20
        assert {(n, n, n) for n in (1024, 2048, 4096, 8192, 16384)} <= set(shapes)
        assert any(m <= 16 for m, _, _ in shapes)
        assert any(m % 128 and n % 256 and k % 64 for m, n, k in shapes)
    assert all("torch.matmul" in [p.name for p in b.peers] for b in benchmarks)
    assert [b.rank for b in benchmarks] == sorted(b.rank for b in benchmarks)


def test_shapes_of_the_command_line():
    linear: OpRows = by_op()["linear"]
    assert linear.parse("8x16x24") == linear.parse("k=24,m=8,n=16") == {"m": 8, "n": 16, "k": 24}
    for text, message in (
        ("8x16", "k is missing"),
        ("8x16x24x32", "got 4 sizes"),
        ("large", "MxNxK in numbers"),
        ("m=8,n=8,k=8,z=1", "no size z"),
    ):
        with pytest.raises(ValueError, match=message):
            linear.parse(text)
    env = Environment(torch.device("cpu"), WallTimer(), ours=())
    (row,) = runner.run([linear.row({"m": 5, "n": 6, "k": 7}, "float16")], env, seconds=0.001)
    assert (row["status"], row["candidate"]) == ("ok", "torch.matmul")
    assert (row["flops"], row["bytes"]) == (2 * 5 * 6 * 7, 2 * (5 * 7 + 6 * 7 + 5 * 6))


def test_names_are_found_or_the_groups_are_told():
    benchmarks = list(discover())
    assert {b.group for b in select(benchmarks, ("linear/4096x4096x4096",))} == {"linear"}
    with pytest.raises(ValueError, match=r"the groups are .*linear"):
        select(benchmarks, ("nonsense",))


def test_tables_and_comparison():
    cuda = FakeCuda()
    before = list(runner.run([toy(cuda=cuda)], fake_environment(cuda), seconds=0.001))
    after = list(runner.run([toy(cuda=cuda, seconds=10e-6)], fake_environment(cuda), seconds=0.001))
    assert "2.00 x peer" in report.table_of(before)
    text = report.comparison(before, after)
    assert "2.000 x  faster" in text
    assert "within the spread" in text  # the peer
    assert "slower" in report.comparison(after, before)
    assert "no benchmark has a number in both" in report.comparison(before, [])
    assert "no_such_pkg is not installed" in report.table_of(before)


def test_capture_leaves_no_trace():
    call = registry.capture(registry.get("rms_norm"), {"x": torch.ones(2, 4), "weight": torch.ones(4)})
    assert call["x"].shape == (2, 4)
    assert torch.isfinite(tkpy.rms_norm(torch.ones(2, 4), torch.ones(4))).all()
